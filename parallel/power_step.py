"""A power step follows the largest singular values of many matrices at once, over tensor-parallel shards.

One vector lags where another singular value overtakes the largest: it converges like (sigma_2 / sigma_1)^(2 t), and
starts with almost nothing of the new direction. With V > 1 vectors the top of the spectrum is iterated as a
subspace, at the same memory traffic, and r is its best vector (Rayleigh-Ritz); V = 1 is the reference code's iteration.

For all layers of a rank a step takes one all-reduce, one solver call of each kind, and launches that go by the kinds
of layers; see `parallel.spectral` for the notation.

    M   the local shard of W (L, R), its sharded dimension first
    Q   the basis (R, V), whose first column is r
    N   layers of one kind
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parallel.spectral import SpectralLayer, kinds_of, materialise, matrices_of
from parallel.stacks import hand_out, joined, product
from parallel.sums import all_reduced

EXACT_UP_TO = 512
"""First vectors come from an exact decomposition up to this R, beyond it from power steps."""
FIRST_POWER_STEPS = 64
KEPT = 1e-6
"""By how much of sigma^2 a vector of the basis keeps itself, beside what M^T M makes of it."""


@dataclass(frozen=True)
class _Images:
    """It holds what a power step computes of one matrix in each of N layers before the ranks sum it."""

    copies: int
    basis_NRV: Tensor
    """The old basis Q."""
    image_NLV: Tensor
    """M times the basis."""
    back_NRV: Tensor
    """M^T times the image."""
    gram_NVV: Tensor
    """The image's inner products."""

    @property
    def sums(self) -> tuple[Tensor, Tensor]:
        """These are summed over the ranks."""
        back, gram = self.back_NRV.flatten(), self.gram_NVV.flatten()
        return (back, gram) if self.copies == 1 else (back / self.copies, gram / self.copies)


@torch.no_grad()
def power_step(layers: Sequence[SpectralLayer], group: ProcessGroup) -> None:
    """Advance the singular vectors and sigma of all matrices by one step, with one all-reduce."""
    together = kinds_of(layers)
    images = [_images(alike) for alike in together]
    every = [image for of_kind in images for image in of_kind]
    totals = iter(sums_over([part for image in every for part in image.sums], group))
    every = [
        replace(
            image,
            back_NRV=next(totals).view_as(image.back_NRV),
            gram_NVV=next(totals).view_as(image.gram_NVV),
        )
        for image in every
    ]
    steps = iter(advanced(every))
    for alike, of_kind in zip(together, images, strict=True):
        _put(alike, [next(steps) for _ in of_kind])


def _images(alike: Sequence[SpectralLayer]) -> list[_Images]:
    """It returns the images of each stacked matrix in layers of one kind."""
    copies = alike[0].norms.copies
    bases_NKRV = torch.stack([layer.norms.basis_KRV for layer in alike])
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(bases_NKRV.shape[1])]
    for some, matrices in matrices_of(alike, bases_NKRV.dtype):
        for number, matrix_NLR in enumerate(matrices):
            # Few rows times a matrix are three times as fast as the matrix times few columns (CPU, torch 2.13).
            image_NVL = product(bases_NKRV[some, number].mT, matrix_NLR.mT)
            found[number].append((image_NVL, product(image_NVL, matrix_NLR)))
    images = []
    for number, pairs in enumerate(found):
        image_NVL, back_NVR = (joined(of_pair) for of_pair in zip(*pairs, strict=True))
        gram_NVV = image_NVL @ image_NVL.mT
        images.append(_Images(copies, bases_NKRV[:, number], image_NVL.mT, back_NVR.mT, gram_NVV))
    return images


@dataclass(frozen=True)
class _Step:
    """It is where a power step has led to, for one matrix in each of N layers."""

    basis_NRV: Tensor
    piece_NL: Tensor
    sigma_N: Tensor


def advanced(images: Sequence[_Images]) -> Iterator[_Step]:
    """It yields basis, sigma and pieces by the summed M^T M Q and Q^T M^T M Q of old bases Q, for one run after
    another. All matrices that have as many vectors go through one solver call of each kind, and with as many rows of
    the basis also through one launch of each kind."""
    by_size: dict[int, dict[int, list[int]]] = {}
    for number, image in enumerate(images):
        _, rows, vectors = image.back_NRV.shape
        by_size.setdefault(vectors, {}).setdefault(rows, []).append(number)
    steps: dict[int, _Step] = {}
    for of_rows in by_size.values():
        alike = [[images[number] for number in numbers] for numbers in of_rows.values()]
        steps.update(zip(chain(*of_rows.values()), _subspace_steps(alike), strict=True))
    yield from (steps[number] for number in range(len(images)))


def _subspace_steps(alike: Sequence[Sequence[_Images]]) -> Iterator[_Step]:
    """Rayleigh-Ritz rotates bases to the singular vectors of M within the subspace, the largest first. Images that
    stand together have bases of one shape, and are rotated together."""
    counts = [sum(len(image.gram_NVV) for image in images) for images in alike]
    # Solvers refuse what is not finite, and the others are not to suffer from one; back_NRV is not finite there either.
    grams = torch.cat([image.gram_NVV for images in alike for image in images]).nan_to_num(0.0, 0.0, 0.0)
    squares, rotations = (
        (grams[:, 0], torch.ones_like(grams)) if grams.shape[-1] == 1 else torch.linalg.eigh(grams)
    )
    squares, rotations = squares.flip(-1).split(counts), rotations.flip(-1).split(counts)
    backs = [_rotated(*of_shape) for of_shape in zip(alike, squares, rotations, strict=True)]
    for images, back_NRV, basis_NRV, square_NV, rotation_NVV in zip(
        alike, backs, orthonormal(backs), squares, rotations, strict=True
    ):
        size_N1 = torch.linalg.vector_norm(back_NRV[:, :, 0], dim=1, keepdim=True)
        length_N1 = square_NV[:, :1].sqrt()
        first_NV1, sigma_N = rotation_NVV[:, :, :1] / length_N1[:, None], (size_N1 / length_N1)[:, 0]
        own = [len(image.gram_NVV) for image in images]
        parts = zip(images, basis_NRV.split(own), first_NV1.split(own), sigma_N.split(own), strict=True)
        for image, basis, first, sigma in parts:
            yield _Step(basis, (image.image_NLV @ first)[:, :, 0], sigma)


def _rotated(images: Sequence[_Images], square_NV: Tensor, rotation_NVV: Tensor) -> Tensor:
    """It returns M^T M Q (N, R, V) of the rotated bases Q; the first column spans what power iteration makes of it."""
    back_NRV = torch.cat([image.back_NRV for image in images]) @ rotation_NVV
    # M^T M + e I has the same vectors; with it those that M makes nothing of stay as they are.
    basis_NRV = torch.cat([image.basis_NRV for image in images])
    kept_NRV = (basis_NRV @ rotation_NVV[:, :, 1:]) * (KEPT * square_NV[:, :1, None])
    back_NRV[:, :, 1:] += kept_NRV
    return back_NRV


def orthonormal(bases: Sequence[Tensor]) -> list[Tensor]:
    """It returns orthonormal bases (N, R, V) of the spaces that the columns span, the first column but scaled.

    Columns of length 1 go through Cholesky's decomposition of their inner products (Cholesky-QR), in float64: that
    loses digits by the square of how far columns are from orthogonal, and after Rayleigh-Ritz they nearly are.
    """
    wide = [basis.double() for basis in bases]
    columns = [basis / torch.linalg.vector_norm(basis, dim=1, keepdim=True) for basis in wide]
    lower = torch.linalg.cholesky_ex(torch.cat([basis.mT @ basis for basis in columns])).L
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device).expand_as(lower)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False).mT.split([len(b) for b in bases])
    pairs = zip(columns, inverse, bases, strict=True)
    return [(basis @ factor).to(old.dtype) for basis, factor, old in pairs]


def _put(alike: Sequence[SpectralLayer], steps: Sequence[_Step]) -> None:
    """It puts what has become of each stacked matrix into the buffers of the layers."""
    norms = [layer.norms for layer in alike]
    hand_out(torch.stack([step.basis_NRV for step in steps], dim=1), [own.basis_KRV for own in norms])
    hand_out(torch.cat([step.piece_NL for step in steps], dim=1), [own.sharded_L for own in norms])
    hand_out(torch.stack([step.sigma_N for step in steps], dim=1), [own.sigma_K for own in norms])


@torch.no_grad()
def measure(layers: Sequence[SpectralLayer], group: ProcessGroup) -> None:
    """Set sigma = v^T W u of all matrices for weights that have moved and vectors that have not, with one all-reduce of
    one number per matrix."""
    together = kinds_of(layers)
    shares = [_shares(alike) for alike in together]
    totals = sums_over([share_NK.flatten() for share_NK in shares], group)
    for alike, share_NK, total in zip(together, shares, totals, strict=True):
        hand_out(total.view_as(share_NK), [layer.norms.sigma_K for layer in alike])


def _shares(alike: Sequence[SpectralLayer]) -> Tensor:
    """It returns this rank's share of v^T W u of each stacked matrix in layers of one kind, (N, K)."""
    norms = alike[0].norms
    bases_NKRV = torch.stack([layer.norms.basis_KRV for layer in alike])
    pieces_NL = torch.stack([layer.norms.sharded_L for layer in alike])
    found = []
    for some, matrices in matrices_of(alike, bases_NKRV.dtype):
        pieces = pieces_NL[some].split(norms.pieces, dim=1)
        own = [
            (piece_NL * product(matrix_NLR, bases_NKRV[some, number, :, :1])[:, :, 0]).sum(dim=1)
            for number, (matrix_NLR, piece_NL) in enumerate(zip(matrices, pieces, strict=True))
        ]
        found.append(torch.stack(own, dim=1))
    return joined(found) / norms.copies


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
    return (
        torch.linalg.eigh(all_reduced(gram_RR, group)).eigenvectors[:, -vectors:].flip(-1).to(matrix_LR.dtype)
    )


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
    if group.size() == 1:
        return tensors
    flat = all_reduced(torch.cat(list(tensors)), group)
    return flat.split([tensor.numel() for tensor in tensors])
