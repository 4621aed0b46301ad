"""The tensors that are the state of a model have names, on one rank as in a checkpoint of all of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

WEIGHT = "weight"
"""The kind of tensor that a weight or a buffer is; the others are those that an optimizer keeps of it."""


@dataclass(frozen=True)
class Piece:
    """It is what a rank holds of a tensor: its whole tensor-parallel share, in its shape, or a run of the share's
    elements, flat."""

    name: str
    """Of the weight or buffer in the whole model, see `Outline.tensors`."""
    kind: str
    tensor: Tensor
    """The state itself, not a copy."""
    start: int | None
    """Where the run begins in the flattened share; none: it is the whole share."""

    @property
    def key(self) -> str:
        """This is what it is called in a file."""
        return key_of(self.name, self.kind, self.start)


def key_of(name: str, kind: str = WEIGHT, start: int | None = None) -> str:
    """It returns what a tensor is called in a file: `exp_avg/layer_07.attention.output.weight`, or with a start
    `weight/embedding.weight@4096`."""
    return f"{kind}/{name}" if start is None else f"{kind}/{name}@{start}"


def persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """It yields the buffers that are state, as `named_buffers` does; the others follow from it."""
    for path, part in module.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer
