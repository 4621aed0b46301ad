"""Eigenvalues and traces of matrices that are known by their products alone equal those of the matrices."""

import pytest
import torch
from torch import Tensor

from parallel.eigenvalues import (
    Operator,
    Search,
    estimated_trace,
    largest_eigenvalues,
    random_normal,
    random_signs,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(spectrum: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    vectors = torch.linalg.qr(torch.randn(len(spectrum), len(spectrum), generator=generator(7)).double()).Q
    product: Tensor = vectors * spectrum @ vectors.T
    return (product + product.T) / 2


def search(size: int, count: int, tolerance: float = 1e-9) -> Search:
    return Search(min(count, size), min(2 * count + 20, size), tolerance, 500)


def found(of: Tensor, count: int) -> list[tuple[float, float]]:
    start = random_normal(of[0], generator())
    limits = search(len(start), count, 1e-9 if of.dtype == torch.float64 else 1e-4)
    return [(one.value, one.residual) for one in largest_eigenvalues(lambda v: of @ v, start, limits)]


SPECTRA = {
    "spread": torch.linspace(-3, 2, 300).double() ** 3,
    "close": torch.linspace(0.9, 1, 200).double(),
    "mostly zeros": torch.cat((torch.tensor([5.0, 3.0, -7.0]), torch.zeros(97))).double(),
    "negative": -torch.arange(1.0, 61).double(),
    "smaller than a basis": torch.arange(5.0).double(),
    "one": torch.tensor([3.0]).double(),
    "nothing": torch.zeros(40).double(),
}


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
def test_they_are_the_largest(spectrum: Tensor, count: int) -> None:
    expected = spectrum.sort(descending=True).values[:count].tolist()
    pairs = found(matrix(spectrum), count)
    assert [value for value, _ in pairs] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert all(residual <= 1e-7 for _, residual in pairs)


def test_restarts_lose_nothing() -> None:
    """Far more products than the basis has vectors."""
    products = 0
    close = matrix(torch.cat((torch.linspace(0, 1, 390).double(), 1 + torch.arange(1, 11).double() / 5000)))

    def operator(v: Tensor) -> Tensor:
        nonlocal products
        products += 1
        return close @ v

    pairs = largest_eigenvalues(operator, random_normal(close[0], generator()), search(400, 3))
    assert [one.value for one in pairs] == pytest.approx([1.002, 1.0018, 1.0016], rel=1e-12)
    assert 100 < products < 503


def test_a_residual_bounds_the_error() -> None:
    """In fp32, where products are rounded, the exact eigenvalue lies no farther away than the residual says."""
    exact = matrix(SPECTRA["spread"])
    largest = SPECTRA["spread"].max().item()
    ((value, residual),) = found(exact.float(), 1)
    assert abs(value - largest) <= residual + 1e-6 * 27
    assert residual < 1e-3 * 27


def of(dense: Tensor) -> Operator:
    return lambda vector: dense @ vector


def test_the_trace_of_a_diagonal_matrix_is_exact() -> None:
    diagonal = torch.randn(50, generator=generator(3)).double()
    trace = estimated_trace(of(diagonal.diag()), diagonal, 4, generator())
    assert trace.value == pytest.approx(diagonal.sum().item(), rel=1e-12)
    assert trace.standard_error == pytest.approx(0, abs=1e-12)


def test_the_standard_error_of_a_trace_is_its_spread() -> None:
    """Var z^T A z = 2 (|A|^2 - |diag A|^2) for random signs z (Avron & Toledo 2011)."""
    dense = matrix(SPECTRA["spread"])
    exact = (2 * (dense.square().sum() - dense.diag().square().sum())).sqrt().item()
    traces = [estimated_trace(of(dense), dense[0], 64, generator(seed)) for seed in range(30)]
    errors = torch.tensor([trace.value for trace in traces]).double() - dense.trace()
    assert (errors / exact * 8).square().mean().sqrt().item() == pytest.approx(1, rel=0.4)
    for trace in traces:
        assert trace.standard_error * 8 == pytest.approx(exact, rel=0.4)


def test_signs_are_signs() -> None:
    signs = random_signs(torch.zeros(1000, dtype=torch.float64), generator())
    assert signs.square().sum() == 1000
    assert signs.dtype == torch.float64
    assert signs.sum().abs() < 150


def test_a_product_that_is_not_finite_ends_it() -> None:
    with pytest.raises(FloatingPointError):
        found(torch.full((9, 9), float("nan")).double(), 1)
