"""Layer-wise optimizers scale the update of each matrix by a ratio of norms, and those are norms of whole matrices.

A tensor that an optimizer moves is seldom one matrix: queries, keys and values are stacked in one parameter; of that a
tensor-parallel rank has a share; and bf16 and ZeRO lay parameters end to end and cut them anywhere. So an optimizer is
told which matrices lie where in its tensors (`Matrices`), and ranks add their sums of squares: for all matrices of the
model together, in float64, in one message a step, and every rank goes on with the same bytes. So ratios do not depend
on the layout, and replicas and the two ends of a tied table stay equal to the bit.

What has one dimension (biases, gains, gammas) is no matrix: its ratio is 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from parallel.statistics import squared_norms
from pretrain.optim.foreach import ForeachOptimizer
from pretrain.optim.groups import Groups


class MatrixPart(NamedTuple):
    """It is what a rank holds of one matrix, a run of elements of a tensor that the optimizer moves."""

    number: int
    """Of the matrix, among all of the model."""
    start: int
    """Its first element in the flattened tensor."""
    length: int
    measured: bool
    """This rank adds its squares to the sum; others have copies."""


@dataclass(frozen=True)
class Matrices:
    """It says which matrices lie where in the tensors that an optimizer moves."""

    count: int
    """Of the whole model's matrices."""
    parts: Mapping[Tensor, Sequence[MatrixPart]]
    """By the tensor that is moved; one that is all padding has none."""
    add: Callable[[Tensor], Tensor]
    """It returns the sum of a float64 tensor on the CPU over all ranks; all of them call it."""


class Norms(NamedTuple):
    """It holds norms of one whole matrix."""

    weight: float
    update: float


class LayerwiseOptimizer(ForeachOptimizer):
    """Groups whose key `layerwise` is true hold matrices."""

    matrices: Matrices | None = None
    """None: every tensor is a matrix of its own, and this process has all of it, as outside of an engine."""

    def norms(self, weights: list[Tensor], updates: list[Tensor]) -> list[Norms]:
        """It returns the norms of each matrix that has a part in these tensors; all ranks call it together."""
        parts = self._parts(weights)
        count = self.matrices.count if self.matrices else len(weights)
        squares = torch.zeros(2, count, dtype=torch.float64)
        measured = [[part for part in own if part.measured] for own in parts]
        numbers = [part.number for own in measured for part in own]
        if numbers:
            pieces = [*_cut(weights, measured), *_cut(updates, measured)]
            squares[:, numbers] = squared_norms(pieces).cpu().view(2, -1)
        if self.matrices:
            squares = self.matrices.add(squares)
        by_matrix = list(zip(*squares.sqrt().tolist(), strict=True))
        return [Norms(*by_matrix[part.number]) for own in parts for part in own]

    def scale(self, weights: list[Tensor], updates: list[Tensor], factors: Sequence[float]) -> None:
        """It multiplies each matrix's part of the updates by a factor, in the order of `norms`."""
        if pieces := _cut(updates, self._parts(weights)):
            torch._foreach_mul_(pieces, list(factors))

    def _parts(self, weights: list[Tensor]) -> list[Sequence[MatrixPart]]:
        if self.matrices:
            return [self.matrices.parts.get(weight, ()) for weight in weights]
        return [[MatrixPart(number, 0, weight.numel(), True)] for number, weight in enumerate(weights)]


def layerwise_groups(groups: Groups) -> Groups:
    """It returns groups that know whether they hold matrices, before those are laid end to end."""
    return [{**group, "layerwise": any(p.ndim > 1 for p in group["params"])} for group in groups]


def _cut(tensors: Sequence[Tensor], parts: Sequence[Sequence[MatrixPart]]) -> list[Tensor]:
    """It returns views of the parts of all tensors, in order."""
    return [
        tensor.view(-1)[part.start : part.start + part.length]
        for tensor, own in zip(tensors, parts, strict=True)
        for part in own
    ]
