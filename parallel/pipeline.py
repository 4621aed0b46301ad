"""A model is a list of layer specifications: run in order by one process, or cut into pipeline stages.

Specifications describe layers without building them, so that a stage builds only its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Activation = Tensor | tuple[Tensor, ...]
"""What flows from layer to layer; a tuple where more than one tensor must (encoder and decoder, masks)."""


@dataclass(frozen=True)
class LayerSpec:
    """It says how to build one layer: a module that maps an Activation to an Activation."""

    module: type[nn.Module]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    tie: str | None = None
    """Layers with the same key share one `weight`, also where they lie on different stages."""

    def build(self) -> nn.Module:
        return self.module(**self.arguments)


class SequentialLayers(nn.Module):
    """It runs all layers of a specification list in order on this rank; tied layers share one parameter."""

    def __init__(self, specs: Sequence[LayerSpec]) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        tied: dict[str, nn.Parameter] = {}
        for spec in specs:
            layer = spec.build()
            if spec.tie is not None:
                layer.weight = tied.setdefault(spec.tie, layer.weight)  # type: ignore[arg-type]
            self.layers.append(layer)

    def forward(self, *inputs: Tensor) -> Activation:
        x: Activation = inputs if len(inputs) > 1 else inputs[0]
        for layer in self.layers:
            x = layer(x)
        return x
