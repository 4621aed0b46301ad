"""LARS, LAMB and Adagrad in one process: plain formulas, bounds of updates, and what they launch."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.plain_optimizers import Kept, moved
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.optim.config import AdagradConfig, LAMBConfig, LARSConfig, OptimizerConfig
from pretrain.optim.groups import parameter_groups
from pretrain.optim.registry import make_optimizer

FAST = {"learning_rate": 0.1}
SETTINGS: list[OptimizerConfig] = [
    LARSConfig(**FAST, trust_coefficient=0.02, weight_decay=0.1),
    LARSConfig(**FAST, momentum=0.0, weight_decay=0.0),
    LAMBConfig(**FAST, weight_decay=0.1),
    LAMBConfig(**FAST, beta1=0.5, weight_decay=0.0, epsilon=0.1),
    AdagradConfig(**FAST),
    AdagradConfig(**FAST, weight_decay=0.1, epsilon=0.1),
]
LAYERWISE = [config for config in SETTINGS if not isinstance(config, AdagradConfig)]


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 2), nn.Conv1d(2, 3, 4))


def built(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    return make_optimizer(config).build(parameter_groups(module.parameters(), config.weight_decay))


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours.double() - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_twenty_steps_by_the_plain_formula(config: OptimizerConfig) -> None:
    module = layers()
    optimizer = built(config, module)
    plain = [parameter.detach().double() for parameter in module.parameters()]
    kept: list[Kept] = [{} for _ in plain]
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        rate = 0.1 / (1 + step % 3)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for number, parameter in enumerate(module.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            plain[number] = moved(
                config,
                plain[number],
                parameter.grad.double(),
                rate,
                kept[number],
                matrix=parameter.ndim > 1,
            )
        optimizer.step()
    assert max(map(relative, module.parameters(), plain)) < 1e-6


@pytest.mark.parametrize("config", LAYERWISE, ids=str)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_where_a_norm_is_0_the_ratio_is_1(config: OptimizerConfig, weight: float) -> None:
    matrix = nn.Parameter(torch.full((3, 4), weight))
    config = config.model_copy(update={"weight_decay": 0.0})
    optimizer = make_optimizer(config).build(parameter_groups([matrix], 0.0))
    gradient = torch.full((3, 4), 1.0 - weight)
    expected = moved(config, matrix.detach().double(), gradient.double(), 0.1, {}, matrix=False)
    optimizer.param_groups[0]["lr"] = 0.1
    matrix.grad = gradient
    optimizer.step()
    assert torch.allclose(matrix.double(), expected, rtol=1e-6, atol=0)


# What they launch


class Launches(TorchDispatchMode):
    """It counts operations that are not views and read no number of the host's."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if not function.is_view and function is not torch.ops.aten._local_scalar_dense.default:
            self.counts[str(function)] += 1
        return function(*arguments, **(options or {}))


def launches(config: OptimizerConfig, matrices: int) -> Counter[str]:
    module = nn.ParameterList(torch.ones(3, 4) for _ in range(matrices))
    optimizer = built(config, module)
    for step in range(2):
        for parameter in module.parameters():
            parameter.grad = torch.ones(3, 4)
        with Launches() as seen:
            optimizer.step()
        if step:
            return seen.counts
    raise AssertionError


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_launches_do_not_go_by_the_matrices(config: OptimizerConfig) -> None:
    few, many = launches(config, 2), launches(config, 40)
    assert few == many
    assert sum(few.values()) < 25


# How far Adagrad moves a weight


@given(st.lists(st.floats(-1e18, 1e18, allow_subnormal=False), min_size=1, max_size=20))
def test_adagrad_never_moves_a_weight_farther_than_the_learning_rate(gradients: list[float]) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer(AdagradConfig(**FAST)).build([{"params": [weight], "weight_decay": 0.0}])
    optimizer.param_groups[0]["lr"] = 1.0
    for gradient in gradients:
        before = weight.item()
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        assert abs(weight.item() - before) <= 1 + 1e-6 * (1 + abs(before))


def test_the_first_update_of_adagrad_reaches_the_bound() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer(AdagradConfig(**FAST)).build([{"params": [weight], "weight_decay": 0.0}])
    optimizer.param_groups[0]["lr"] = 1.0
    weight.grad = torch.tensor([-3.0])
    optimizer.step()
    assert weight.item() == pytest.approx(1.0, rel=1e-6)


def test_bounds_are_declared_where_they_hold() -> None:
    assert AdagradConfig(**FAST).update_bound == 1.0
    assert AdagradConfig(**FAST, epsilon=1e-16).update_bound is None
    assert AdagradConfig(**FAST, weight_decay=0.1).update_bound is None, "it decays within the update"
    assert LARSConfig(**FAST).update_bound is None
    assert LAMBConfig(**FAST).update_bound is None
