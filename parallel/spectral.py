"""sigmaReparam (Zhai et al. 2023, arXiv 2303.06296) takes one power step per update, over tensor-parallel shards.

    What = (gamma / sigma) W,    sigma = v^T W u,  the spectral norm of W

    M   the local shard of W with its sharded dimension first: W itself where rows are sharded
        (column-parallel layers), W^T where columns are (row-parallel layers)
    R   length of M's rows, the dimension that every rank holds whole; r (R,) is the singular vector along it
    L   rows of M on this rank, a share of the sharded dimension; s (L,) is this rank's piece of the other vector
    K   matrices stacked in one layer (query, key, value)
    V   vectors that are iterated: r is the first column of an orthonormal basis (R, V)

The vector that is kept is the one that every rank holds whole: u for column-parallel layers, as in the reference
code, v for row-parallel ones, which is the same iteration begun half a step later.

One vector lags where another singular value overtakes the largest: it converges like (sigma_2 / sigma_1)^(2 t), and
starts with almost nothing of the new direction. With V > 1 vectors the top of the spectrum is iterated as a
subspace, at the same memory traffic, and r is its best vector (Rayleigh-Ritz); V = 1 is the reference code's iteration.

Weights change once per optimizer step, so one power step per update is all there is to do, for all layers of a
rank in one all-reduce:  a = M r;  all-reduce [b = sum M^T a,  c = sum |a|^2];  sigma = |b| / sqrt(c),
r <- b / |b|,  s <- a / sqrt(c).  What is then used as a plain weight by every micro-batch, and its accumulated
gradient G is pulled back to W and gamma once per update, with one more all-reduce of one number per matrix:
    p = <G, W>,    dW = (gamma / sigma) (G - (p / sigma) v u^T),    dgamma = p / sigma.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

Mode = Literal["sigma", "sigma_stats_only"]

EXACT_UP_TO = 512
"""First vectors come from an exact decomposition up to this R, beyond it from power steps."""
FIRST_POWER_STEPS = 64


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
        substituted: Tensor = _Substitute.apply(weight, self.effective)
        return substituted

    def matrices(self, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """It yields number, M (L, R) in this module's dtype, and the view of `sharded_L` of each stacked matrix."""
        pieces = self.sharded_L.split(self.local_blocks if self.rows_sharded else [self.sharded_L.numel()])
        blocks = weight.split(self.local_blocks) if self.rows_sharded else (weight.T,)
        for number, (block, piece) in enumerate(zip(blocks, pieces, strict=True)):
            yield number, block.to(self.sharded_L.dtype), piece

    def differentiable(self, weight: Tensor, gamma_K: Tensor) -> Tensor:
        """It returns What of a weight that is not sharded as a function of W and gamma, to be differentiated as often
        as need be. As in training, singular vectors count as constants: sigma = v^T W u."""
        hats = []
        for number, matrix_LR, piece_L in self.matrices(weight):
            sigma = piece_L @ matrix_LR @ self.replicated_KR[number].to(piece_L)
            hats.append(gamma_K[number] / sigma * matrix_LR)
        return torch.cat(hats).to(weight.dtype) if self.rows_sharded else hats[0].T.to(weight.dtype)

    @torch.no_grad()
    def materialise(self, weight: Tensor) -> None:
        """It computes What = (gamma / sigma) W, in the dtype of W; see `materialise` for many layers."""
        if self.active:
            self.scale(weight, (self.gamma_K / self.sigma_K).tolist())

    @torch.no_grad()
    def scale(self, weight: Tensor, factors: Sequence[float]) -> None:
        """It makes What of W by the factor of each stacked matrix: a factor in bf16 would move in steps of 0.4 %."""
        if self.effective is None:
            self.effective = torch.empty_like(weight)
        rows = self.local_blocks if self.rows_sharded else [weight.shape[0]]
        shards = zip(weight.split(rows), self.effective.split(rows), factors, strict=True)
        for source, target, factor in shards:
            torch.mul(source, factor, out=target)


@dataclass(frozen=True)
class SpectralLayer:
    """It names a weight and its spectral norms."""

    name: str
    weight: nn.Parameter
    norms: SpectralNorms

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


@dataclass(frozen=True)
class _Images:
    """It holds what a power step computes of one matrix before the ranks sum it."""

    norms: SpectralNorms
    number: int
    piece_L: Tensor
    image_LV: Tensor
    """M times the basis."""
    back_RV: Tensor
    """M^T times the image."""
    gram_VV: Tensor
    """The image's inner products."""

    @property
    def sums(self) -> Tensor:
        return torch.cat((self.back_RV.flatten(), self.gram_VV.flatten())) / self.norms.copies


@torch.no_grad()
def power_step(layers: Sequence[SpectralLayer], group: ProcessGroup) -> None:
    """Advance the singular vectors and sigma of all matrices by one step, with one all-reduce."""
    images = []
    for layer in layers:
        for number, matrix_LR, piece_L in layer.norms.matrices(layer.weight):
            image_LV = matrix_LR @ layer.norms.basis_KRV[number]
            back_RV, gram_VV = matrix_LR.T @ image_LV, image_LV.T @ image_LV
            images.append(_Images(layer.norms, number, piece_L, image_LV, back_RV, gram_VV))
    for image, total in zip(images, sums_over([image.sums for image in images], group), strict=True):
        _advance(image, total)


def _advance(image: _Images, total: Tensor) -> None:
    """Set basis, sigma and pieces of one matrix from the summed M^T M Q and Q^T M^T M Q of its old basis Q."""
    norms, vectors = image.norms, image.gram_VV.shape[0]
    back_RV = total[: image.back_RV.numel()].view_as(image.back_RV)
    gram_VV = total[image.back_RV.numel() :].view_as(image.gram_VV)
    image_LV = image.image_LV
    if vectors > 1:
        # Rayleigh-Ritz: rotate to the singular vectors of M within the subspace, the largest first.
        rotation_VV = torch.linalg.eigh(gram_VV).eigenvectors.flip(-1)
        back_RV, image_LV = back_RV @ rotation_VV, image_LV @ rotation_VV
        gram_VV = rotation_VV.T @ gram_VV @ rotation_VV
        norms.basis_KRV[image.number] = torch.linalg.qr(back_RV).Q
    size, length = back_RV[:, 0].norm(), gram_VV[0, 0].sqrt()
    norms.sigma_K[image.number] = size / length
    norms.basis_KRV[image.number, :, 0] = back_RV[:, 0] / size
    torch.div(image_LV[:, 0], length, out=image.piece_L)


@torch.no_grad()
def measure(layers: Sequence[SpectralLayer], group: ProcessGroup) -> None:
    """Set sigma = v^T W u of all matrices for weights that have moved and vectors that have not, with one all-reduce of
    one number per matrix."""
    products = []
    for layer in layers:
        norms = layer.norms
        own = [
            torch.dot(piece_L, matrix_LR @ norms.replicated_KR[number])
            for number, matrix_LR, piece_L in norms.matrices(layer.weight)
        ]
        products.append(torch.stack(own) / norms.copies)
    for layer, total in zip(layers, sums_over(products, group), strict=True):
        layer.norms.sigma_K.copy_(total)


def materialise(layers: Sequence[SpectralLayer]) -> None:
    """Renew What of all layers from W, sigma and gamma, with one transfer from the device."""
    active = [layer for layer in layers if layer.norms.active]
    if not active:
        return
    factors = torch.cat([layer.norms.gamma_K / layer.norms.sigma_K for layer in active])
    numbers = iter(factors.tolist())
    for layer in active:
        layer.norms.scale(layer.weight, [next(numbers) for _ in layer.norms.local_blocks])


@torch.no_grad()
def initialise(layers: Sequence[SpectralLayer], group: ProcessGroup) -> float:
    """Set the first vectors, sigma and gamma of all matrices; return the largest |M^T s - sigma r| / sigma.

    They are exact for small matrices, from the eigenvectors of M^T M. Large ones take FIRST_POWER_STEPS power steps, in
    which sigma comes closer than the vectors do, and training goes on where they stand.
    """
    for layer in layers:
        for number, matrix_LR, _ in layer.norms.matrices(layer.weight):
            layer.norms.basis_KRV[number] = _first_basis(matrix_LR, layer.norms.basis_KRV.shape[-1], group)
    exact = all(layer.norms.replicated_KR.shape[1] <= EXACT_UP_TO for layer in layers)
    for _ in range(1 if exact else FIRST_POWER_STEPS):
        power_step(layers, group)
    for layer in layers:
        if layer.norms.config.gamma_init == "sigma":
            layer.norms.gamma_K.copy_(layer.norms.sigma_K)
    materialise(layers)
    return residual(layers, group)


def _first_basis(matrix_LR: Tensor, vectors: int, group: ProcessGroup) -> Tensor:
    """It returns the top right singular vectors (R, V) of all of M, or a start for power steps, equal on all ranks."""
    size = matrix_LR.shape[1]
    if size > EXACT_UP_TO:
        generator = torch.Generator().manual_seed(0)
        return torch.linalg.qr(torch.randn(size, vectors, generator=generator)).Q.to(matrix_LR)
    gram_RR = matrix_LR.double().T @ matrix_LR.double()
    dist.all_reduce(gram_RR, group=group)
    return torch.linalg.eigh(gram_RR).eigenvectors[:, -vectors:].flip(-1).to(matrix_LR.dtype)


@torch.no_grad()
def residual(layers: Sequence[SpectralLayer], group: ProcessGroup) -> float:
    """It returns the largest |M^T s - sigma r| / sigma: how far the pairs are from singular vectors."""
    backs, targets = [], []
    for layer in layers:
        for number, matrix_LR, piece_L in layer.norms.matrices(layer.weight):
            backs.append(matrix_LR.T @ piece_L / layer.norms.copies)
            targets.append((layer.norms.sigma_K[number], layer.norms.replicated_KR[number]))
    pairs = zip(sums_over(backs, group), targets, strict=True)
    return max(((back - sigma * vector).norm() / sigma).item() for back, (sigma, vector) in pairs)


def sums_over(tensors: Sequence[Tensor], group: ProcessGroup) -> Sequence[Tensor]:
    """It returns the sums of many small tensors over a group, in one all-reduce."""
    if dist.get_world_size(group) == 1:
        return tensors
    flat = torch.cat(list(tensors))
    dist.all_reduce(flat, group=group)
    return flat.split([tensor.numel() for tensor in tensors])


def fold(module: nn.Module) -> None:
    """Replace every W by its What, for export: the module computes the same and has plain weights."""
    for layer in find_spectral_layers(module):
        layer.fold()
