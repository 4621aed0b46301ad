"""The optimizer contract, held by every optimizer: what is declared without torch is what the real one does."""

from typing import Any

import pytest
import torch
from torch import nn

from pretrain.errors import ConfigurationError
from pretrain.optim.config import (
    OPTIMIZERS,
    AdagradConfig,
    AdamWConfig,
    LAMBConfig,
    LARSConfig,
    OptimizerConfig,
    SGDConfig,
)
from pretrain.optim.groups import parameter_groups
from pretrain.optim.optimizer import settings_of
from pretrain.optim.registry import IMPLEMENTATIONS, make_optimizer
from pretrain.runtime.libraries import find_apex
from pretrain.section import kind_of

SETTINGS: list[OptimizerConfig] = [
    AdamWConfig(learning_rate=1e-2),
    AdamWConfig(learning_rate=1e-2, beta1=0.5, beta2=0.999, epsilon=1e-6, weight_decay=0.0),
    SGDConfig(learning_rate=1e-2),
    SGDConfig(learning_rate=1e-2, momentum=0.5, nesterov=True, weight_decay=0.1),
    SGDConfig(learning_rate=1e-2, momentum=0.0),
    LARSConfig(learning_rate=1e-2, trust_coefficient=0.1),
    LARSConfig(learning_rate=1e-2, momentum=0.0, weight_decay=0.0),
    LAMBConfig(learning_rate=1e-2),
    AdagradConfig(learning_rate=1e-2),
]
WITHOUT_APEX = pytest.mark.skipif(find_apex().usable, reason="apex is installed here")


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(5, 7)


def trained(optimizer: torch.optim.Optimizer, parameters: list[Any], steps: int = 4) -> None:
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (step + 1)
        optimizer.step()


def built(config: OptimizerConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
    layer = module()
    groups = parameter_groups(layer.parameters(), config.weight_decay)
    return layer, make_optimizer(config).build(groups)


def test_both_halves_know_the_same_kinds() -> None:
    assert {kind_of(section) for section in OPTIMIZERS} == set(IMPLEMENTATIONS)
    assert kind_of(OPTIMIZERS[0]) == "adamw", "runs of before that name no kind are of this one"


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_it_keeps_the_state_that_it_declares(config: OptimizerConfig) -> None:
    layer, optimizer = built(config)
    assert not optimizer.state
    trained(optimizer, list(layer.parameters()))
    for parameter in layer.parameters():
        held = optimizer.state.get(parameter, {})
        numbers = {name for name, value in held.items() if getattr(value, "shape", None) == parameter.shape}
        assert numbers == set(config.state)
        assert all(held[name].dtype == torch.float32 for name in numbers)


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_learning_rate_0_moves_nothing(config: OptimizerConfig) -> None:
    layer, optimizer = built(config)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(map(torch.equal, before, layer.parameters()))


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_settings_are_all_that_the_configuration_sets(config: OptimizerConfig) -> None:
    """A group that was loaded with the settings of another run goes on with these."""
    _, optimizer = built(config)
    settings = settings_of(optimizer)
    assert [group["weight_decay"] for group in settings] == [config.weight_decay, 0.0]
    assert all("lr" not in group and "params" not in group for group in settings)
    other = config.model_copy(update={"weight_decay": 0.5, "beta1": 0.1, "momentum": 0.3})
    _, foreign = built(other)
    optimizer.load_state_dict(foreign.state_dict())
    assert settings_of(optimizer) != settings
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    assert settings_of(optimizer) == settings


@pytest.mark.parametrize("config", SETTINGS, ids=str)
def test_gammas_move_as_weights_without_decay_do(config: OptimizerConfig) -> None:
    gammas, weights = ([torch.linspace(1, 2, 3), torch.ones(1)] for _ in range(2))
    optimizer = make_optimizer(config).gamma_optimizer(gammas)
    assert all(group["weight_decay"] == 0 and group["lr"] == 0 for group in optimizer.param_groups)
    trained(optimizer, gammas)
    plain = make_optimizer(config).build([{"params": weights, "weight_decay": 0.0}])
    trained(plain, weights)
    for gamma, weight in zip(gammas, weights, strict=True):
        assert torch.allclose(gamma, weight, rtol=1e-6, atol=0)
        assert not torch.equal(gamma, torch.ones_like(gamma))


def test_matrices_decay_and_vectors_do_not() -> None:
    layer = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 2, bias=False))
    layer[2].weight.requires_grad_(False)
    matrices, vectors = parameter_groups(layer.parameters(), 0.3)
    assert [p.shape for p in matrices["params"]] == [(7, 5)]
    assert [p.shape for p in vectors["params"]] == [(7,)] * 3
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert len(parameter_groups(nn.LayerNorm(3).parameters(), 0.3)) == 1


# AdamW


@WITHOUT_APEX
def test_adamw_of_torch_is_used_where_apex_is_not() -> None:
    _, optimizer = built(AdamWConfig(learning_rate=1e-2))
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["fused"]
    assert make_optimizer(AdamWConfig(learning_rate=1e-2)).description == "torch fused AdamW"


@WITHOUT_APEX
def test_apex_that_is_asked_for_and_not_usable_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"optimizer\.implementation"):
        make_optimizer(AdamWConfig(learning_rate=1e-2, implementation="apex"))


# SGD


@pytest.mark.parametrize("config", [c for c in SETTINGS if isinstance(c, SGDConfig)], ids=str)
def test_sgd_by_hand(config: SGDConfig) -> None:
    """b <- m b + g + wd w, w <- w - lr b, or with Nesterov's momentum w <- w - lr (g + wd w + m b)."""
    layer, optimizer = built(config)
    weight, momentum = layer.weight.detach().double().clone(), torch.zeros(7, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    for step in range(1, 6):
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / step
        gradient = layer.weight.grad.double() + config.weight_decay * weight
        momentum = config.momentum * momentum + gradient
        update = gradient + config.momentum * momentum if config.nesterov else momentum
        weight -= 0.1 / step * update
        optimizer.step()
    assert torch.allclose(layer.weight.double(), weight, rtol=1e-5, atol=1e-7)


def test_sgd_has_neither_bound_nor_scale() -> None:
    config = SGDConfig(learning_rate=1e-2)
    assert config.update_bound is None
    assert config.update_scale is None
    assert make_optimizer(config).description == "torch fused SGD"
