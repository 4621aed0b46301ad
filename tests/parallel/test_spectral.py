"""sigmaReparam equals the formula taken literally, in float64, and sharded equals unsharded.

B  samples, I  input features, O  output features
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.distributed import run_distributed
from support.training import make_mesh
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.naive_sigma import NaiveSigmaLinear
from parallel.config import ParallelConfig
from parallel.initialization import Normal
from parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel.mesh import ParallelMesh
from parallel.power_step import EXACT_UP_TO, initialise, power_step, residual
from parallel.spectral import SpectralConfig, find_spectral_layers, fold, materialise
from parallel.spectral_gradient import GradientPiece, add_outer, pull_back

BATCH, INPUTS, HIDDEN, OUTPUTS = 6, 16, (8, 8), 12
STEPS = 20
SIGMA = SpectralConfig("sigma", "sigma")


class Net(nn.Module):
    """Two stacked matrices, cut by rows, then one cut by columns."""

    def __init__(self, mesh: ParallelMesh, spectral: SpectralConfig) -> None:
        super().__init__()
        blocks = [(rows, Normal(1, f"up{i}", 0.3)) for i, rows in enumerate(HIDDEN)]
        self.up = ColumnParallelLinear(INPUTS, blocks, bias=True, tensor=mesh.tensor, spectral=spectral)
        down = Normal(1, "down", 0.3)
        self.down = RowParallelLinear(
            HIDDEN[1], OUTPUTS, down, bias=True, tensor=mesh.tensor, spectral=spectral
        )

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).split(self.up.local_blocks, dim=-1)
        return self.down(torch.tanh(value) * gate)


class NaiveNet(nn.Module):
    """The same with the formula taken literally, one matrix a layer."""

    def __init__(self, net: Net, gamma_init: str) -> None:
        super().__init__()
        weights, biases = net.up.weight.split(HIDDEN), net.up.bias.split(HIDDEN)
        pairs = zip(weights, biases, strict=True)
        self.up = nn.ModuleList(NaiveSigmaLinear(w, b, gamma_init=gamma_init) for w, b in pairs)
        self.down = NaiveSigmaLinear(net.down.weight, net.down.bias, gamma_init=gamma_init, keep_left=True)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = (layer(x) for layer in self.up)
        return self.down(torch.tanh(value) * gate)


def data(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    draw = [torch.randn(BATCH, size, generator=generator, dtype=torch.float64) for size in (INPUTS, OUTPUTS)]
    return draw[0].to(dtype).requires_grad_(), draw[1].to(dtype)


def take_step(
    net: Net, mesh: ParallelMesh, optimizer: torch.optim.Optimizer, x: Tensor, target: Tensor
) -> Tensor:
    """Forward, backward, pull-back, update of weights and gammas, power step."""
    layers = find_spectral_layers(net)
    y = net(x)
    F.mse_loss(y, target).backward()
    pieces = [GradientPiece(layer, layer.weight.grad, 0) for layer in layers if layer.weight.grad is not None]
    gammas = pull_back(pieces, layers, mesh.tensor.group)
    counts = [len(layer.norms.gamma_K) for layer in layers]
    for layer, gradient in zip(layers, gammas.split(counts), strict=True):
        layer.norms.gamma_K.grad = gradient
    optimizer.step()
    power_step(layers, mesh.tensor.group)
    materialise(layers)
    return y.detach()


def against_the_formula(gamma_init: str) -> float:
    """Largest difference over 20 steps of outputs and of gradients with regard to x, W, b and gamma."""
    mesh = make_mesh(ParallelConfig())
    net = Net(mesh, SpectralConfig("sigma", gamma_init)).double()  # type: ignore[arg-type]
    layers = find_spectral_layers(net)
    initialise(layers, mesh.tensor.group)
    naive = NaiveNet(net, gamma_init)
    gammas = [layer.norms.gamma_K for layer in layers]
    ours = torch.optim.AdamW([*net.parameters(), *gammas], lr=1e-2, weight_decay=0.0)
    theirs = torch.optim.AdamW(naive.parameters(), lr=1e-2, weight_decay=0.0)
    worst = 0.0
    for step in range(STEPS):
        (x, target), (x2, _) = data(step, torch.float64), data(step, torch.float64)
        ours.zero_grad()
        theirs.zero_grad()
        y2 = naive(x2)
        F.mse_loss(y2, target).backward()
        y = take_step(net, mesh, ours, x, target)
        pairs = [(y, y2), (x.grad, x2.grad)]
        pairs += [(net.up.weight.grad, torch.cat([m.weight.grad for m in naive.up]))]
        pairs += [(net.down.weight.grad, naive.down.weight.grad), (net.down.bias.grad, naive.down.bias.grad)]
        ours_gamma = torch.cat([gamma.grad for gamma in gammas])
        pairs += [(ours_gamma, torch.stack([m.gamma.grad for m in (*naive.up, naive.down)]))]
        worst = max([worst, *((a - b).abs().max().item() for a, b in pairs)])
        theirs.step()
    return worst


@pytest.mark.parametrize("gamma_init", ["sigma", "one"])
def test_equals_the_formula_in_float64(gamma_init: str) -> None:
    (worst,) = run_distributed(against_the_formula, 1, gamma_init)
    assert worst < 1e-10


def sharded_course(size: int, vectors: int) -> list[Tensor]:
    """Outputs of 20 steps, then all sigmas and gammas."""
    mesh = make_mesh(ParallelConfig(tensor=size))
    net = Net(mesh, SpectralConfig("sigma", "sigma", vectors))
    layers = find_spectral_layers(net)
    initialise(layers, mesh.tensor.group)
    gammas = [layer.norms.gamma_K for layer in layers]
    optimizer = torch.optim.AdamW([*net.parameters(), *gammas], lr=1e-2, weight_decay=0.0)
    course = []
    for step in range(STEPS):
        optimizer.zero_grad()
        course.append(take_step(net, mesh, optimizer, *data(step, torch.float32)))
    return [*course, *(layer.norms.sigma_K for layer in layers), *gammas]


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("size", [2, 4])
def test_sharded_equals_unsharded(size: int, vectors: int) -> None:
    (whole,) = run_distributed(sharded_course, 1, 1, vectors)
    for course in run_distributed(sharded_course, size, size, vectors):
        for ours, theirs in zip(course, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def first_sigmas(size: int, hidden: int) -> tuple[float, list[float], list[float]]:
    mesh = make_mesh(ParallelConfig(tensor=size))
    blocks = [(hidden // 2, Normal(1, "a", 0.02)), (hidden, Normal(1, "b", 0.05))]
    layer = ColumnParallelLinear(hidden, blocks, bias=False, tensor=mesh.tensor, spectral=SIGMA)
    layers = find_spectral_layers(nn.ModuleList([layer]))
    largest = initialise(layers, mesh.tensor.group)
    exact = [torch.linalg.matrix_norm(init.rows(0, rows, rows, hidden), 2).item() for rows, init in blocks]
    return largest, layers[0].norms.sigma_K.tolist(), exact


@pytest.mark.parametrize(
    ("hidden", "residual_bound", "sigma_bound"), [(EXACT_UP_TO, 1e-5, 1e-5), (EXACT_UP_TO + 64, 0.2, 2e-2)]
)
def test_first_vectors(hidden: int, residual_bound: float, sigma_bound: float) -> None:
    for largest, sigmas, exact in run_distributed(first_sigmas, 2, 2, hidden):
        assert largest < residual_bound
        assert sigmas == pytest.approx(exact, rel=sigma_bound)


def test_a_wrong_vector_has_a_residual() -> None:
    assert run_distributed(spoilt_residual, 1)[0] > 0.5


def spoilt_residual() -> float:
    mesh = make_mesh(ParallelConfig())
    layers = find_spectral_layers(Net(mesh, SIGMA))
    initialise(layers, mesh.tensor.group)
    layers[0].norms.basis_KRV[0] = layers[0].norms.basis_KRV[0].roll(1, dims=0)
    return residual(layers, mesh.tensor.group)


def overtaken(vectors: int) -> float:
    """sigma, relative to the true one, after the second singular value has overtaken the first and 10 power steps."""
    mesh = make_mesh(ParallelConfig())
    config = SpectralConfig("sigma", "sigma", vectors)
    net = nn.ModuleList(
        [ColumnParallelLinear(8, [(8, Normal(1, "x", 1.0))], bias=False, tensor=mesh.tensor, spectral=config)]
    )
    layers = find_spectral_layers(net)
    with torch.no_grad():
        layers[0].weight.copy_(torch.diag(torch.linspace(1, 0.3, 8)))
        initialise(layers, mesh.tensor.group)
        layers[0].weight[1, 1] = 1.1
    for _ in range(10):
        power_step(layers, mesh.tensor.group)
    return layers[0].norms.sigma_K.item() / 1.1


def test_several_vectors_follow_where_one_stays_behind() -> None:
    assert run_distributed(overtaken, 1, 1)[0] == pytest.approx(1 / 1.1, rel=1e-3)
    assert run_distributed(overtaken, 1, 2)[0] == pytest.approx(1.0, rel=1e-5)


def degenerate() -> tuple[list[float], list[float], float]:
    """Sigmas of matrices of rank 3 and of full rank that are iterated together with one that is not finite, before and
    after an update that gives the first one its full rank; and how far its basis is from orthonormal at last."""
    mesh = make_mesh(ParallelConfig())
    layers = find_spectral_layers(
        nn.ModuleList(
            ColumnParallelLinear(
                12,
                [(16, Normal(1, f"x{i}", 1.0))],
                bias=False,
                tensor=mesh.tensor,
                spectral=SpectralConfig("sigma", "sigma", 8),
            )
            for i in range(3)
        )
    )
    with torch.no_grad():
        full = layers[0].weight.clone()
        layers[0].weight.zero_()[:3, :3] = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        initialise(layers, mesh.tensor.group)
        layers[2].weight[0, 0] = float("nan")
    found = []
    for weight in (layers[0].weight.clone(), full):
        with torch.no_grad():
            layers[0].weight.copy_(weight)
        for _ in range(40):
            power_step(layers, mesh.tensor.group)
        found.append(
            [
                layer.norms.sigma_K.item() / torch.linalg.matrix_norm(layer.weight, 2).item()
                for layer in layers[:2]
            ]
        )
    basis_RV = layers[0].norms.basis_KRV[0]
    return found[0], found[1], (basis_RV.T @ basis_RV - torch.eye(8)).abs().max().item()


def test_a_matrix_of_low_rank_keeps_its_basis_and_one_that_is_not_finite_spoils_no_other() -> None:
    ((low, full, off),) = run_distributed(degenerate, 1)
    assert [*low, *full] == pytest.approx([1.0] * 4, rel=1e-5)
    assert off < 1e-5


def folded() -> tuple[Tensor, Tensor, list[str]]:
    mesh = make_mesh(ParallelConfig())
    net = Net(mesh, SpectralConfig("sigma", "one"))
    initialise(find_spectral_layers(net), mesh.tensor.group)
    x = data(0, torch.float32)[0]
    before = net(x)
    fold(net)
    return before.detach(), net(x).detach(), [layer.name for layer in find_spectral_layers(net)]


def test_folded_computes_the_same() -> None:
    ((before, after, names),) = run_distributed(folded, 1)
    assert torch.equal(before, after)
    assert names == ["up", "down"]


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_outer_product_on_any_piece(rows: int, columns: int, draw: Any) -> None:
    start = draw.draw(st.integers(0, rows * columns - 1))
    stop = draw.draw(st.integers(start + 1, rows * columns))
    left, right = torch.arange(rows).double() + 1, torch.arange(columns).double() - 2
    whole = torch.linspace(-1, 1, rows * columns).double()
    pieces = torch.stack((whole, -whole))[:, start:stop].clone()
    scale = torch.tensor([0.5, 3.0]).double()
    add_outer(pieces, start, torch.stack((2.0 * left, left)), right.expand(2, -1), scale)
    outer = torch.outer(left, right).flatten()
    expected = torch.stack((0.5 * whole + 2.0 * outer, outer - 3.0 * whole))[:, start:stop]
    torch.testing.assert_close(pieces, expected)
