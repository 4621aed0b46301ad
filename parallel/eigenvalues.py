"""Symmetric matrices that are known by their products with vectors alone have their largest eigenvalues and trace
estimated here, each with its error.

Eigenvalues by Lanczos' method with full reorthogonalisation and thick restarts (Wu & Simon 2000), which keeps memory
bounded. It is written out here, 40 lines, since the well-kept implementation (ARPACK in scipy) knows NumPy's vectors in
host memory alone and would be a dependency for this one command.

Vectors may be divided over ranks: whoever says what the inner products of all ranks together are, has the rest.

P  rows of the matrix, or of this rank's part of its vectors; M  vectors of the basis
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
"""It multiplies a vector (P,) by the matrix."""

Inner = Callable[[Tensor, Tensor], Tensor]
"""It returns the inner products (N,) of vectors (N, P) with a vector (P,)."""


@dataclass(frozen=True)
class Search:
    """It says what is looked for, and when that ends."""

    count: int
    """Eigenvalues, the largest first."""
    vectors: int
    """M, at which the space restarts; more than `count`, or as many as the matrix has rows."""
    tolerance: float
    """Residuals, relative to the eigenvalue that is largest in size, at which the search ends."""
    products: int
    """Or it ends after as many, whatever the residuals, which tell."""


@dataclass(frozen=True, eq=False)
class Eigenvalue:
    """It is one eigenvalue, with how far its vector v of length 1 is from an eigenvector."""

    value: float
    """The Rayleigh quotient v^T H v / v^T v."""
    residual: float
    """|H v - value v|: an eigenvalue of H lies no farther from `value`."""
    vector_P: Tensor


@dataclass(frozen=True)
class Trace:
    """It is an estimate of a trace."""

    value: float
    standard_error: float
    vectors: int


@dataclass
class Krylov:
    """An orthonormal basis of a Krylov space, and the matrix in it."""

    basis: Tensor
    """(M + 1, P); the last vector is what the space grows by."""
    projected: Tensor
    """(M, M), float64, on the CPU."""
    inner: Inner
    size: int = 0
    """Vectors that products have been taken of."""
    coupling: float = 0.0
    """How much of the last product lies outside of the space."""
    generator: torch.Generator = field(default_factory=torch.Generator)

    def grow(self, operator: Operator) -> None:
        """It takes the product of the newest vector, and adds what is new in it to the basis.

        Raises FloatingPointError where it is not finite.
        """
        end = self.size + 1
        product = operator(self.basis[self.size])
        length = norm(product, self.inner)
        if not math.isfinite(length):
            raise FloatingPointError("a product is not finite")
        inside, outside = self._split(product, end)
        self.projected[: self.size + 1, self.size] = inside
        self.projected[self.size, : self.size + 1] = inside
        self.coupling = norm(outside, self.inner)
        if (
            self.coupling <= 100 * torch.finfo(outside.dtype).eps * length
        ):  # the space is invariant: go on elsewhere
            self.coupling = 0.0
            outside = self._split(random_normal(outside, self.generator), end)[1]
        self.basis[end] = outside / norm(outside, self.inner)
        self.size = end

    def _split(self, vector: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """It returns the coefficients of a vector in the basis, and the rest of it; twice, for rounding."""
        known = self.basis[:end]
        first = self.inner(known, vector)
        vector = vector - first.to(vector) @ known
        second = self.inner(known, vector)
        return (first + second).double().cpu(), vector - second.to(vector) @ known

    def ritz(self) -> tuple[Tensor, Tensor]:
        """It returns approximate eigenvalues (size,), the largest first, and their vectors (size, size) in the basis as
        columns."""
        values, vectors = torch.linalg.eigh(self.projected[: self.size, : self.size])
        return values.flip(-1), vectors.flip(-1)

    def vectors(self, coefficients: Tensor) -> Tensor:
        """It returns vectors (N, P) of columns (size, N) in the basis."""
        return coefficients.T.to(self.basis) @ self.basis[: self.size]

    def restart(self, kept: int) -> None:
        """It keeps the best approximate eigenvectors, and the vector that the space grows by."""
        values, vectors = self.ritz()
        self.basis[:kept] = self.vectors(vectors[:, :kept])
        self.basis[kept] = self.basis[self.size]
        self.projected.zero_()
        self.projected[:kept, :kept] = values[:kept].diag()
        self.size = kept


def plain(vectors: Tensor, vector: Tensor) -> Tensor:
    """It returns the inner products of vectors that are whole on this rank."""
    return vectors @ vector


def norm(vector: Tensor, inner: Inner) -> float:
    """It returns the length of a vector."""
    return math.sqrt(max(inner(vector[None], vector).item(), 0.0))


def largest_eigenvalues(
    operator: Operator, start_P: Tensor, search: Search, inner: Inner = plain
) -> Sequence[Eigenvalue]:
    """It returns the largest eigenvalues of a symmetric matrix, the largest first, from a start that is not zero and
    in its precision. A random one has something of every eigenvector; of eigenvalues that are equal, it may find one.

    Raises:
        FloatingPointError: a product is not finite.
    """
    count, most = search.count, search.vectors
    basis = start_P.new_empty(most + 1, len(start_P))
    space = Krylov(basis, torch.zeros(most, most, dtype=torch.float64), inner)
    space.basis[0] = start_P / norm(start_P, inner)
    for _ in range(search.products):
        space.grow(operator)
        values, vectors = space.ritz()
        errors = space.coupling * vectors[-1, :count].abs()
        found = space.size >= count and (errors <= search.tolerance * values.abs().max()).all()
        # Where a space ends, equal eigenvalues may be left.
        if found and (space.coupling or space.size == most or count == 1):
            break
        if space.size == most:
            space.restart((most + count) // 2)
    return [measured(operator, vector, inner) for vector in space.vectors(space.ritz()[1][:, :count])]


def measured(operator: Operator, vector_P: Tensor, inner: Inner) -> Eigenvalue:
    """It returns what an approximate eigenvector says, from one more product."""
    vector_P = vector_P / norm(vector_P, inner)
    product_P = operator(vector_P)
    value = inner(vector_P[None], product_P).item()
    return Eigenvalue(value, norm(product_P - value * vector_P, inner), vector_P)


def estimated_trace(operator: Operator, like_P: Tensor, vectors: int, generator: torch.Generator) -> Trace:
    """It estimates a trace by the mean of z^T H z over random vectors z of signs (Hutchinson 1990), at least two; the
    standard error is that of the mean. Of a diagonal matrix it is exact."""
    quotients = []
    for _ in range(vectors):
        signs_P = random_signs(like_P, generator)
        quotients.append((signs_P @ operator(signs_P)).item())
    samples = torch.tensor(quotients, dtype=torch.float64)
    return Trace(samples.mean().item(), samples.std().item() / math.sqrt(vectors), vectors)


def random_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """It draws on the CPU, so that every device has the same."""
    return torch.randn(like.shape, generator=generator).to(like)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """It draws 1 and -1, on the CPU, so that every device has the same."""
    return (torch.randint(0, 2, like.shape, generator=generator) * 2 - 1).to(like)
