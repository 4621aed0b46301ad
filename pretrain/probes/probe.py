"""What a probe is: a fixed number of slots in the vector that the ranks sum once per step.

Every rank knows the layout of the slots from the configuration and the step alone. Each slot is written by a known
number of ranks so that the sum over all ranks is the global value; where that is a maximum or a minimum, every
contributor has a slot of its own and they are folded after the sum. What is not finite stays in its slot.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from data_pipeline.batches import Batch
from parallel.mesh import ParallelMesh
from parallel.partition import LAYERS_BEFORE_BLOCKS
from pretrain.backend.update_gate import UpdateGate
from pretrain.config.run import RunConfig
from pretrain.tasks.gpt.sizes import parameter_shapes


@dataclass(frozen=True)
class ProbeStep:
    """One optimizer step as the probes see it."""

    step: int
    dense: bool
    """Whether the probes that do not look at every step look at this one."""
    histograms: bool
    batches: Sequence[Batch]
    """This rank's micro-batches."""


@dataclass(frozen=True)
class Measures:
    """What a step was found to be, equal on all ranks."""

    scalars: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By tag in TensorBoard."""


@dataclass(frozen=True)
class ProbedModel:
    """This rank's part of the model, with what probes need to know about the rest."""

    config: RunConfig
    mesh: ParallelMesh
    layers: Sequence[tuple[int, nn.Module]]
    """Layers of this stage with their index in the whole list."""
    gate: UpdateGate

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all layers, by index."""
        blocks = (f"layer_{number:02d}" for number in range(self.config.model.num_layers))
        return ("embedding", "positions", *blocks, "final_norm", "head")

    @property
    def blocks(self) -> Iterator[tuple[int, nn.Module]]:
        """Transformer blocks of this stage with their number, from 0."""
        for index, layer in self.layers:
            if 0 <= index - LAYERS_BEFORE_BLOCKS < self.config.model.num_layers:
                yield index - LAYERS_BEFORE_BLOCKS, layer

    @cached_property
    def sizes(self) -> list[int]:
        """Parameters of each layer of the whole model, rows of vocabulary padding excluded."""
        unpadded = self.config.model.model_copy(update={"vocabulary_multiple": 1})
        sizes = [0] * len(self.names)
        for shape in parameter_shapes(unpadded, self.config.data.sequence_length):
            sizes[shape.layer] += shape.size
        return sizes

    def owners(self) -> dict[int, int]:
        """id of each parameter -> index of its layer; a tied head's is the embedding."""
        last = len(self.names) - 1
        found: dict[int, int] = {}
        for index, layer in self.layers:
            tied = index == last and self.config.model.tied_embeddings
            for parameter in layer.parameters():
                found.setdefault(id(parameter), 0 if tied else index)
        return found

    def zeros(self, *shape: int) -> Tensor:
        """float64 slots on the device."""
        return torch.zeros(*shape, dtype=torch.float64, device=self.mesh.device)


class Probe(ABC):
    """Looks at a step without changing it by a bit. Methods are called on all ranks in the order that they stand in."""

    @abstractmethod
    def due(self, occasion: ProbeStep) -> bool:
        """Whether the probe looks at this step; the same on all ranks."""

    def begin(self, occasion: ProbeStep) -> None:  # noqa: B027 - most need nothing here
        """Before the forward pass of the first micro-batch."""

    def gradients_averaged(self) -> None:  # noqa: B027
        """After the last backward pass, before anything has touched the averaged gradients."""

    @abstractmethod
    def local(self) -> Tensor:
        """This rank's slots, float64."""

    @abstractmethod
    def finish(self, slots: Tensor) -> Measures:
        """What the summed slots say; pure."""

    def after_update(self, learning_rate: float) -> None:  # noqa: B027
        """After the update of a step that the probe has looked at; 0: it was withheld."""

    def forget(self) -> None:  # noqa: B027
        """Between steps: the weights have been replaced, not updated."""


Observe = Callable[..., None]


def observe_first_call(module: nn.Module, observe: Observe, *, output: bool = False) -> None:
    """Call `observe` with the arguments (or the output) of the next forward pass of a module, and of no other.

    That is the first micro-batch's: weights that ZeRO-3 divides are whole then, and what activation checkpointing
    computes again is not seen.
    """
    handles: list[RemovableHandle] = []

    def hook(module: nn.Module, arguments: tuple[Any, ...], *outputs: Any) -> None:
        handles.pop().remove()
        with torch.no_grad():
            observe(*(outputs if output else arguments))

    register = module.register_forward_hook if output else module.register_forward_pre_hook
    handles.append(register(hook))


def squares_by_layer(model: ProbedModel, layers: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares of all entries by layer of the whole model, float64; norms are taken in fp32."""
    sums = model.zeros(len(model.names))
    if tensors:
        norms = torch.stack(torch._foreach_norm([tensor.float() for tensor in tensors]))
        sums.index_add_(0, torch.tensor(layers, device=sums.device), norms.double().square())
    return sums


def by_layer(name: str, model: ProbedModel, values: Sequence[float]) -> dict[str, float]:
    """One measure for each layer that has parameters: `name/layer`."""
    triples = zip(model.names, model.sizes, values, strict=True)
    return {f"{name}/{layer}": value for layer, size, value in triples if size}


def by_block(name: str, values: Sequence[float]) -> dict[str, float]:
    """One measure for each block: `name/layer_07`."""
    return {f"{name}/layer_{number:02d}": value for number, value in enumerate(values)}
