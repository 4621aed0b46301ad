"""sigmaReparam (Zhai et al. 2023, arXiv 2303.06296) takes one power step per update, over tensor-parallel shards.

    What = (gamma / sigma) W,    sigma = v^T W u,  the spectral norm of W

    M   the local shard of W with its sharded dimension first: W itself where rows are sharded
        (column-parallel layers), W^T where columns are (row-parallel layers)
    R   length of M's rows, the dimension that every rank holds whole; r (R,) is the singular vector along it
    L   rows of M on this rank, a share of the sharded dimension; s (L,) is this rank's piece of the other vector
    K   matrices stacked in one layer (query, key, value)
    N   layers of one kind, which are computed with together
    V   vectors that are iterated: r is the first column of an orthonormal basis (R, V)

The vector that is kept is the one that every rank holds whole: u for column-parallel layers, as in the reference
code, v for row-parallel ones, which is the same iteration begun half a step later.

Weights change once per optimizer step, so one power step per update is all there is to do, for all layers of a
rank in one all-reduce:  a = M r;  all-reduce [b = sum M^T a,  c = sum |a|^2];  sigma = |b| / sqrt(c),
r <- b / |b|,  s <- a / sqrt(c).  What is then used as a plain weight by every micro-batch, and its accumulated
gradient G is pulled back to W and gamma once per update, with one more all-reduce of one number per matrix:
    p = <G, W>,    dW = (gamma / sigma) (G - (p / sigma) v u^T),    dgamma = p / sigma.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from parallel.stacks import by_kind, lie_evenly, portions, stacked

Mode = Literal["sigma", "sigma_stats_only"]


@dataclass(frozen=True)
class SpectralConfig:
    """It says how the matrices of a layer are reparametrised."""

    mode: Mode
    """`sigma_stats_only` follows sigma and leaves the weights as they are."""
    gamma_init: Literal["sigma", "one"]
    """gamma starts at the first sigma, so that What = W (the reference code), or at 1 (the paper's text)."""
    vectors: int = 1
    """V, the vectors that are iterated."""


class _Substitute(torch.autograd.Function):
    """It uses What in the forward pass; its gradient lands on W, unchanged, until `pull_back` makes it W's."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, effective: Tensor) -> Tensor:
        return effective.view_as(effective)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SpectralNorms(nn.Module):
    """It holds singular vectors, sigma and gamma of the matrices in one linear layer as buffers, in fp32 at least."""

    def __init__(
        self,
        weight: Tensor,
        local_blocks: Sequence[int],
        *,
        rows_sharded: bool,
        config: SpectralConfig,
        copies: int = 1,
    ) -> None:
        """`local_blocks` are the local rows of each stacked matrix; only row-sharded layers stack several.

        `copies` is the tensor size for a weight that is not sharded at all: sums over the ranks then count it so often.
        """
        super().__init__()
        self.copies = copies
        self.config = config
        self.rows_sharded = rows_sharded
        self.local_blocks = list(local_blocks)
        count, (rows, columns) = len(self.local_blocks), weight.shape
        replicated, sharded = (columns, rows) if rows_sharded else (rows, columns)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        vectors = min(config.vectors, replicated)
        self.register_buffer("basis_KRV", torch.zeros(count, replicated, vectors, dtype=dtype))
        self.register_buffer("sharded_L", torch.zeros(sharded, dtype=dtype))
        self.register_buffer("sigma_K", torch.ones(count, dtype=dtype))
        self.register_buffer("gamma_K", torch.ones(count, dtype=dtype))
        self.register_buffer("effective", None, persistent=False)
        self.basis_KRV: Tensor
        self.sharded_L: Tensor
        self.sigma_K: Tensor
        self.gamma_K: Tensor
        self.effective: Tensor | None

    @property
    def replicated_KR(self) -> Tensor:
        """These are the singular vectors that every rank holds whole."""
        return self.basis_KRV[:, :, 0]

    @property
    def active(self) -> bool:
        """It tells whether the layer uses What; else sigma is only followed."""
        return self.config.mode == "sigma"

    def substitute(self, weight: Tensor) -> Tensor:
        """It returns the weight to compute with."""
        if self.effective is None:
            return weight
        if torch.compiler.is_compiling():  # which traces no `.data`
            traced: Tensor = _Substitute.apply(weight, self.effective)
            return traced
        # The same as a view of W with other numbers in it: a fifth of the host's time of a function in Python.
        substituted = weight.view_as(weight)
        substituted.data = self.effective
        return substituted

    def matrices(self, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """It yields number, M (L, R) in this module's dtype, and the view of `sharded_L` of each stacked matrix."""
        pieces = self.sharded_L.split(self.pieces)
        for number, (block, piece) in enumerate(zip(self.shards(weight[None]), pieces, strict=True)):
            yield number, block[0].to(self.sharded_L.dtype), piece

    @property
    def pieces(self) -> list[int]:
        """L of each stacked matrix."""
        return self.local_blocks if self.rows_sharded else [self.sharded_L.numel()]

    def shards(self, weights: Tensor) -> tuple[Tensor, ...]:
        """It returns views M (N, L, R) of each stacked matrix, for weights (N, rows, columns) of layers like this."""
        return weights.split(self.local_blocks, dim=1) if self.rows_sharded else (weights.mT,)

    def differentiable(self, weight: Tensor, gamma_K: Tensor) -> Tensor:
        """It returns What of a weight that is not sharded as a function of W and gamma, to be differentiated as often
        as need be. As in training, singular vectors count as constants: sigma = v^T W u."""
        hats = []
        for number, matrix_LR, piece_L in self.matrices(weight):
            sigma = piece_L @ matrix_LR @ self.replicated_KR[number].to(piece_L)
            hats.append(gamma_K[number] / sigma * matrix_LR)
        return torch.cat(hats).to(weight.dtype) if self.rows_sharded else hats[0].T.to(weight.dtype)


@dataclass(frozen=True)
class SpectralLayer:
    """It names a weight and its spectral norms."""

    name: str
    weight: nn.Parameter
    norms: SpectralNorms

    @cached_property
    def kind(self) -> Hashable:
        """Layers of one kind are computed with together."""
        norms, weight = self.norms, self.weight
        blocks, basis = tuple(norms.local_blocks), norms.basis_KRV
        return norms.rows_sharded, norms.copies, blocks, weight.shape, weight.dtype, basis.shape, basis.dtype

    @torch.no_grad()
    def fold(self) -> None:
        """Replace W by its What, if it is materialised: the layer computes the same and has a plain weight."""
        if self.norms.effective is not None:
            self.weight.copy_(self.norms.effective)
            self.norms.effective = None


def find_spectral_layers(module: nn.Module) -> list[SpectralLayer]:
    """It returns all reparametrised weights of a module, in order."""
    found = []
    for name, layer in module.named_modules():
        norms = getattr(layer, "spectral", None)
        if isinstance(norms, SpectralNorms):
            found.append(SpectralLayer(name, layer.weight, norms))
    return found


def kinds_of(layers: Sequence[SpectralLayer]) -> list[list[SpectralLayer]]:
    """It returns the layers of each kind."""
    return by_kind(layers, lambda layer: layer.kind)


def matrices_of(
    alike: Sequence[SpectralLayer], dtype: torch.dtype
) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """It yields which layers of one kind, and M (N, L, R) of each of their stacked matrices."""
    weights = [layer.weight for layer in alike]
    for some in portions(weights):
        yield some, alike[0].norms.shards(stacked(weights[some]).to(dtype))


@torch.no_grad()
def materialise(layers: Sequence[SpectralLayer]) -> None:
    """Renew What = (gamma / sigma) W of all layers, in the dtype of W.

    A factor in bf16 would move in steps of 0.4 %, so it is fp32, and the product is rounded once.
    """
    for alike in kinds_of([layer for layer in layers if layer.norms.active]):
        norms, weights = [layer.norms for layer in alike], [layer.weight for layer in alike]
        effective = _effective(alike)
        factors_NK = torch.stack([own.gamma_K for own in norms]) / torch.stack([own.sigma_K for own in norms])
        rows = norms[0].local_blocks if norms[0].rows_sharded else [len(weights[0])]
        for some in portions(weights):
            sources, targets = stacked(weights[some]).split(rows, dim=1), effective[some].split(rows, dim=1)
            for source, target, factor_N in zip(sources, targets, factors_NK[some].T, strict=True):
                torch.mul(source, factor_N[:, None, None], out=target)


def _effective(alike: Sequence[SpectralLayer]) -> Tensor:
    """It returns What of layers of one kind as one tensor, which it makes where there is none."""
    own = [layer.norms.effective for layer in alike if layer.norms.effective is not None]
    if len(own) == len(alike) and lie_evenly(own):
        return stacked(own)
    weight = alike[0].weight
    effective = torch.empty(len(alike), *weight.shape, dtype=weight.dtype, device=weight.device)
    for layer, of_layer in zip(alike, effective.unbind(), strict=True):
        layer.norms.effective = of_layer
    return effective


def fold(module: nn.Module) -> None:
    """Replace every W by its What, for export: the module computes the same and has plain weights."""
    for layer in find_spectral_layers(module):
        layer.fold()
