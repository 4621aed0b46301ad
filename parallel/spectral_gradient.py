"""Gradients of What, which micro-batches have accumulated under sigmaReparam, become those of W and gamma.

    p = <G, W>,    dW = (gamma / sigma) (G - (p / sigma) v u^T),    dgamma = p / sigma

G is the gradient of What, p is summed over the shards of W; see `parallel.spectral` for the rest of the notation.

K   matrices stacked in one layer
N   pieces of one kind: of layers of one kind, and the same elements of each
M   elements of a piece in one matrix
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel.power_step import sums_over
from parallel.spectral import SpectralLayer
from parallel.stacks import from_host, hand_out, runs, stacked


@dataclass(frozen=True)
class GradientPiece:
    """It is a piece of a layer's gradient of What: elements [start, start + numel) of the flattened local weight."""

    layer: SpectralLayer
    gradient: Tensor
    start: int

    @property
    def kind(self) -> Hashable:
        """Pieces of one kind are computed with together."""
        return self.layer.kind, self.start, self.gradient.shape, self.gradient.dtype

    @property
    def parts(self) -> Iterator["Part"]:
        """It yields what lies in each of the stacked matrices."""
        norms, columns = self.layer.norms, self.layer.weight.shape[1]
        rows = norms.local_blocks if norms.rows_sharded else [self.layer.weight.shape[0]]
        first, end = 0, self.start + self.gradient.numel()
        for number, size in enumerate(rows):
            last = first + size * columns
            start, stop = max(first, self.start), min(last, end)
            if start < stop:
                yield Part(number, start, stop)
            first = last


@dataclass(frozen=True)
class Part:
    """It is elements [start, stop) of a flattened local weight, all in one of its stacked matrices."""

    number: int
    start: int
    stop: int


@torch.no_grad()
def pull_back(
    pieces: Sequence[GradientPiece], layers: Sequence[SpectralLayer], group: ProcessGroup
) -> Tensor:
    """Turn gradients of What into those of W in place, with one all-reduce; return dgamma of all matrices in a row.

    The ranks of `group` must hold every element of every gradient exactly once among them, or `copies` times.
    """
    together = list(runs(pieces, lambda piece: piece.kind, lambda piece: piece.gradient))
    parts = [(run, part) for run in together for part in run[0].parts]
    sigma = torch.cat([layer.norms.sigma_K for layer in layers])
    index = _places(parts, layers, sigma.device)
    products = torch.zeros_like(sigma)
    if together:
        products.index_add_(0, index, torch.cat([own for run in together for own in _products(run)]))
    (total,) = sums_over([products], group)
    scale = torch.cat([layer.norms.gamma_K for layer in layers]) / sigma
    factors = torch.stack((scale, -scale * total / sigma))[:, index].split(
        [len(run) for run, _ in parts], dim=1
    )
    factors_of = iter(factors)
    for run in together:
        _replace(run, [next(factors_of) for _ in run[0].parts])
    return total / sigma


def _places(
    parts: Sequence[tuple[Sequence[GradientPiece], Part]],
    layers: Sequence[SpectralLayer],
    device: torch.device,
) -> Tensor:
    """It returns which matrix, of those of all layers in a row, each part of each piece lies in."""
    counts = [len(layer.norms.sigma_K) for layer in layers]
    first = {id(layer.norms): sum(counts[:i]) for i, layer in enumerate(layers)}
    places = [first[id(piece.layer.norms)] + part.number for run, part in parts for piece in run]
    return from_host(places, device, torch.int64)


def _products(run: Sequence[GradientPiece]) -> Iterator[Tensor]:
    """It yields this rank's share of p (N,) of each matrix that the pieces have parts of."""
    norms, start = run[0].layer.norms, run[0].start
    weights = stacked([piece.layer.weight for piece in run]).flatten(1)
    gradients = stacked([piece.gradient for piece in run]).flatten(1)
    for part in run[0].parts:
        own_NM = gradients[:, part.start - start : part.stop - start].to(norms.sigma_K.dtype)
        product_N = (own_NM * weights[:, part.start : part.stop]).sum(dim=1)
        yield product_N if norms.copies == 1 else product_N / norms.copies


def _replace(run: Sequence[GradientPiece], factors: Sequence[Tensor]) -> None:
    """It makes gradients of What those of W, by the two factors (2, N) of each matrix that the pieces have parts of."""
    gradients = [piece.gradient for piece in run]
    stack = stacked(gradients)
    norms, start = run[0].layer.norms, run[0].start
    bases_NKRV = torch.stack([piece.layer.norms.basis_KRV for piece in run])
    sharded_NL = torch.stack([piece.layer.norms.sharded_L for piece in run])
    for part, (scale_N, outer_N) in zip(run[0].parts, factors, strict=True):
        # v goes by the local rows of the weight and u by its columns; v of all stacked matrices lies in one buffer, as
        # their rows do in the weight.
        whole_NR = bases_NKRV[:, part.number, :, 0].contiguous()
        left, right = (sharded_NL, whole_NR) if norms.rows_sharded else (whole_NR, sharded_NL)
        flat_NM = stack.flatten(1)[:, part.start - start : part.stop - start]
        add_outer(flat_NM, part.start, left * outer_N[:, None], right, scale_N)
    hand_out(stack, gradients)


def add_outer(flat_NM: Tensor, start: int, left_NL: Tensor, right_NR: Tensor, scale_N: Tensor) -> None:
    """It sets flat <- scale flat + left right^T on elements [start, start + M) of the flat outer products.

    Whole rows are taken together; at most two rows are cut.
    """
    columns, position, end = right_NR.shape[1], start, start + flat_NM.shape[1]
    while position < end:
        row, column = divmod(position, columns)
        whole_rows = (end - position) // columns if column == 0 else 0
        count = whole_rows * columns or min(columns - column, end - position)
        part = flat_NM[:, position - start : position - start + count].unflatten(1, (whole_rows or 1, -1))
        left = left_NL[:, row : row + (whole_rows or 1), None]
        right = right_NR[:, None, column : column + part.shape[2]]
        if part.dtype == scale_N.dtype:
            part.mul_(scale_N[:, None, None]).addcmul_(left, right)
        else:  # gradients in bf16 are rounded once
            part.copy_((part * scale_N[:, None, None]).addcmul_(left, right))
        position += count
