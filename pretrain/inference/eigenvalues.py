"""Symmetric matrices that are known by their products with vectors alone have their largest eigenvalues and trace
estimated here, each with its error.

Eigenvalues by Lanczos' method with full reorthogonalisation and thick restarts (Wu & Simon 2000), which keeps memory
bounded. It is written out here, 40 lines, since the well-kept implementation (ARPACK in scipy) knows NumPy's vectors in
host memory alone and would be a dependency for this one command.

P  rows of the matrix, M  vectors of the basis
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
"""It multiplies a vector (P,) by the matrix."""

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Residuals, relative to the eigenvalue that is largest in size, at which the search ends: what products in fp32 allow,
and what those in float64 do."""
MOST_PRODUCTS = 500
"""The search ends here whatever the residuals, which then tell."""


@dataclass(frozen=True)
class Eigenvalue:
    """It is one eigenvalue, with how far its vector v of length 1 is from an eigenvector."""

    value: float
    """The Rayleigh quotient v^T H v / v^T v."""
    residual: float
    """|H v - value v|: an eigenvalue of H lies no farther from `value`."""


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
    size: int = 0
    """Vectors that products have been taken of."""
    coupling: float = 0.0
    """How much of the last product lies outside of the space."""
    generator: torch.Generator = field(default_factory=torch.Generator)

    def grow(self, operator: Operator) -> None:
        """It takes the product of the newest vector, and adds what is new in it to the basis."""
        end = self.size + 1
        product = operator(self.basis[self.size])
        length = product.norm().item()
        inside, outside = self._split(product, end)
        self.projected[: self.size + 1, self.size] = inside
        self.projected[self.size, : self.size + 1] = inside
        self.coupling = outside.norm().item()
        if (
            self.coupling <= 100 * torch.finfo(outside.dtype).eps * length
        ):  # the space is invariant: go on elsewhere
            self.coupling = 0.0
            outside = self._split(random_normal(outside, self.generator), end)[1]
        self.basis[end] = outside / outside.norm()
        self.size = end

    def _split(self, vector: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """It returns the coefficients of a vector in the basis, and the rest of it; twice, for rounding."""
        known = self.basis[:end]
        first = known @ vector
        vector = vector - first @ known
        second = known @ vector
        return (first + second).double().cpu(), vector - second @ known

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


def largest_eigenvalues(operator: Operator, start_P: Tensor, count: int) -> Sequence[Eigenvalue]:
    """It returns the `count` largest eigenvalues of a symmetric matrix, the largest first, or all if it has no more.

    `start_P` is a random vector, in whose precision it is computed. Of eigenvalues that are equal, one may be found.
    """
    size = len(start_P)
    count = min(count, size)
    most = min(2 * count + 20, size)
    space = Krylov(start_P.new_empty(most + 1, size), torch.zeros(most, most, dtype=torch.float64))
    space.basis[0] = start_P / start_P.norm()
    tolerance = TOLERANCES[start_P.dtype]
    for _ in range(MOST_PRODUCTS):
        space.grow(operator)
        values, vectors = space.ritz()
        errors = space.coupling * vectors[-1, :count].abs()
        found = space.size >= count and (errors <= tolerance * values.abs().max()).all()
        if found and (
            space.coupling or space.size == most
        ):  # a space may end where equal eigenvalues are left
            break
        if space.size == most:
            space.restart((most + count) // 2)
    return [measured(operator, vector) for vector in space.vectors(space.ritz()[1][:, :count])]


def measured(operator: Operator, vector_P: Tensor) -> Eigenvalue:
    """It returns what an approximate eigenvector says, from one more product."""
    vector_P = vector_P / vector_P.norm()
    product_P = operator(vector_P)
    value = (vector_P @ product_P).item()
    return Eigenvalue(value, (product_P - value * vector_P).norm().item())


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
