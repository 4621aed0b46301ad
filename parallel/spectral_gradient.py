"""Gradients of What, which micro-batches have accumulated under sigmaReparam, become those of W and gamma.

    p = <G, W>,    dW = (gamma / sigma) (G - (p / sigma) v u^T),    dgamma = p / sigma

G is the gradient of What, p is summed over the shards of W; see `parallel.spectral` for the rest of the notation.

K   matrices stacked in one layer
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel.spectral import SpectralLayer, SpectralNorms, sums_over


@dataclass(frozen=True)
class GradientPiece:
    """It is a piece of a layer's gradient of What: elements [start, start + numel) of the flattened local weight."""

    layer: SpectralLayer
    gradient: Tensor
    start: int


@torch.no_grad()
def pull_back(
    pieces: Sequence[GradientPiece], layers: Sequence[SpectralLayer], group: ProcessGroup
) -> list[Tensor]:
    """Turn gradients of What into those of W in place, with one all-reduce; return dgamma (K,) of each layer.

    The ranks of `group` must hold every element of every gradient exactly once among them, or `copies` times.
    """
    products = {id(layer.norms): torch.zeros_like(layer.norms.sigma_K) for layer in layers}
    for piece in pieces:
        for number, gradient, start in _by_matrix(piece):
            own = products[id(piece.layer.norms)]
            weight = piece.layer.weight.detach().view(-1)[start : start + gradient.numel()]
            own[number] += torch.dot(gradient.to(own.dtype), weight.to(own.dtype))
    totals = sums_over([products[id(layer.norms)] / layer.norms.copies for layer in layers], group)
    factors = _factors(layers, totals)
    for piece in pieces:
        for number, gradient, start in _by_matrix(piece):
            scale, alpha = factors[id(piece.layer.norms)][number]
            left, right = _outer_factors(piece.layer.norms, number)
            add_outer(gradient, start, left, right, scale=scale, alpha=alpha)
    return [total / layer.norms.sigma_K for layer, total in zip(layers, totals, strict=True)]


def _factors(
    layers: Sequence[SpectralLayer], totals: Sequence[Tensor]
) -> dict[int, list[tuple[float, float]]]:
    """It returns by module gamma / sigma and -gamma p / sigma^2 of each matrix, in one transfer from the device."""
    sigma = torch.cat([layer.norms.sigma_K for layer in layers])
    scale = torch.cat([layer.norms.gamma_K for layer in layers]) / sigma
    pairs = iter(torch.stack((scale, -scale * torch.cat(list(totals)) / sigma), dim=1).tolist())
    return {id(layer.norms): [tuple(next(pairs)) for _ in layer.norms.sigma_K] for layer in layers}


def _by_matrix(piece: GradientPiece) -> Iterator[tuple[int, Tensor, int]]:
    """It yields the part of a piece in each stacked matrix: the matrix's number, the flat gradient, and its start."""
    norms, columns = piece.layer.norms, piece.layer.weight.shape[1]
    rows = norms.local_blocks if norms.rows_sharded else [piece.layer.weight.shape[0]]
    flat, first = piece.gradient.view(-1), 0
    for number, size in enumerate(rows):
        last = first + size * columns
        start, stop = max(first, piece.start), min(last, piece.start + flat.numel())
        if start < stop:
            yield number, flat[start - piece.start : stop - piece.start], start
        first = last


def _outer_factors(norms: SpectralNorms, number: int) -> tuple[Tensor, Tensor]:
    """It returns v by local row of the weight and u by local column."""
    if norms.rows_sharded:
        # v of all stacked matrices lies in one buffer, as their rows do in the weight.
        return norms.sharded_L, norms.replicated_KR[number]
    return norms.replicated_KR[number], norms.sharded_L


def add_outer(flat: Tensor, start: int, left: Tensor, right: Tensor, *, scale: float, alpha: float) -> None:
    """It sets flat <- scale flat + alpha (left right^T) on elements [start, start + len) of the flat outer product.

    Whole rows go through one `addr_`, which reads and writes them once; at most two rows are cut.
    """
    columns, position, end = right.numel(), start, start + flat.numel()
    while position < end:
        row, column = divmod(position, columns)
        whole_rows = (end - position) // columns if column == 0 else 0
        count = whole_rows * columns or min(columns - column, end - position)
        part = flat[position - start : position - start + count]
        if whole_rows:
            vector = left[row : row + whole_rows].to(flat.dtype)
            part.view(whole_rows, columns).addr_(vector, right.to(flat.dtype), beta=scale, alpha=alpha)
        else:
            part.mul_(scale).add_(right[column : column + count], alpha=alpha * left[row].item())
        position += count
