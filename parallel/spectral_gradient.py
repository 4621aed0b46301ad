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
from parallel.stacks import by_kind, from_host, hand_out, joined, portions, stacked


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
    together = by_kind(pieces, lambda piece: piece.kind)
    parts = [(alike, part) for alike in together for part in alike[0].parts]
    sigma = torch.cat([layer.norms.sigma_K for layer in layers])
    index = _places(parts, layers, sigma.device)
    products = torch.zeros_like(sigma)
    if together:
        products.index_add_(0, index, torch.cat([own for alike in together for own in _products(alike)]))
    (total,) = sums_over([products], group)
    scale = torch.cat([layer.norms.gamma_K for layer in layers]) / sigma
    factors = torch.stack((scale, -scale * total / sigma))[:, index].split(
        [len(alike) for alike, _ in parts], dim=1
    )
    factors_of = iter(factors)
    for alike in together:
        _replace(alike, [next(factors_of) for _ in alike[0].parts])
    return total / sigma


def _places(
    parts: Sequence[tuple[Sequence[GradientPiece], Part]],
    layers: Sequence[SpectralLayer],
    device: torch.device,
) -> Tensor:
    """It returns which matrix, of those of all layers in a row, each part of each piece lies in."""
    counts = [len(layer.norms.sigma_K) for layer in layers]
    first = {id(layer.norms): sum(counts[:i]) for i, layer in enumerate(layers)}
    places = [first[id(piece.layer.norms)] + part.number for alike, part in parts for piece in alike]
    return from_host(places, device, torch.int64)


def _products(alike: Sequence[GradientPiece]) -> list[Tensor]:
    """It returns this rank's share of p (N,) of each matrix that pieces of one kind have parts of."""
    norms, start = alike[0].layer.norms, alike[0].start
    found: list[list[Tensor]] = [[] for _ in alike[0].parts]
    for some in portions([piece.gradient for piece in alike]):
        weights = stacked([piece.layer.weight for piece in alike[some]]).flatten(1)
        gradients = stacked([piece.gradient for piece in alike[some]]).flatten(1)
        for products, part in zip(found, alike[0].parts, strict=True):
            own_NM = gradients[:, part.start - start : part.stop - start].to(norms.sigma_K.dtype)
            products.append((own_NM * weights[:, part.start : part.stop]).sum(dim=1))
    return [joined(products) / norms.copies for products in found]


def _replace(alike: Sequence[GradientPiece], factors: Sequence[Tensor]) -> None:
    """It makes gradients of What those of W, by the two factors (2, N) of each matrix that the pieces have parts of."""
    gradients, first = [piece.gradient for piece in alike], alike[0].start
    outer = list(_outer(alike, factors))
    for some in portions(gradients):
        stack = stacked(gradients[some])
        for part, (left_NL, right_NR, scale_N) in zip(alike[0].parts, outer, strict=True):
            flat_NM = stack.flatten(1)[:, part.start - first : part.stop - first]
            add_outer(flat_NM, part.start, left_NL[some], right_NR[some], scale_N[some])
        hand_out(stack, gradients[some])


def _outer(
    alike: Sequence[GradientPiece], factors: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """It yields -(gamma / sigma) (p / sigma) v, u and gamma / sigma of each matrix that the pieces have parts of."""
    rows_sharded = alike[0].layer.norms.rows_sharded
    bases_NKRV = torch.stack([piece.layer.norms.basis_KRV for piece in alike])
    sharded_NL = torch.stack([piece.layer.norms.sharded_L for piece in alike])
    for part, (scale_N, outer_N) in zip(alike[0].parts, factors, strict=True):
        # v goes by the local rows of the weight and u by its columns; v of all stacked matrices lies in one buffer, as
        # their rows do in the weight.
        whole_NR = bases_NKRV[:, part.number, :, 0].contiguous()
        left_NL, right_NR = (sharded_NL, whole_NR) if rows_sharded else (whole_NR, sharded_NL)
        yield left_NL * outer_N[:, None], right_NR, scale_N


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
