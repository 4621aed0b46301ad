"""Every schedule is that of torch's own schedulers, counted in updates that are done after the one it is asked for."""

import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    StepLR,
)

from pretrain.optim.config import ScheduleConfig
from pretrain.optim.schedule import learning_rate

PEAK, TOTAL, WARMUP, DECAY, FLOOR = 3e-3, 40, 8, 10, 0.1


def rates_of(scheduler: LRScheduler, updates: int) -> list[float]:
    """It returns what a scheduler gives at its start and after each of so many updates."""
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(updates):
        scheduler.optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def decay_by_torch(kind: str, updates: int) -> list[float]:
    """It returns the learning rates from the peak on, which the last update of the warmup has."""
    after = TOTAL - WARMUP
    if kind == "wsd":
        stable = after - DECAY
        falling = LinearLR(optimizer(), start_factor=1, end_factor=FLOOR, total_iters=DECAY)
        return [PEAK] * stable + rates_of(falling, updates - stable)
    schedulers = {
        "constant": lambda o: ConstantLR(o, factor=1),
        "linear": lambda o: LinearLR(o, start_factor=1, end_factor=FLOOR, total_iters=after),
        "cosine": lambda o: CosineAnnealingLR(o, T_max=after, eta_min=FLOOR * PEAK),
        # Vaswani et al. 2017, section 5.3: proportional to 1 / sqrt(step), the first step being 1
        "inverse_sqrt": lambda o: LambdaLR(o, lambda done: math.sqrt(WARMUP / (WARMUP + done))),
    }
    return rates_of(schedulers[kind](optimizer()), updates)


def ours(kind: str, **settings: Any) -> list[float]:
    given = {"warmup_steps": WARMUP, "minimum_ratio": FLOOR, **settings}
    config = ScheduleConfig.model_validate({"kind": kind, **given})
    return [learning_rate(update, TOTAL, config, PEAK) for update in range(TOTAL)]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "inverse_sqrt", "wsd"])
def test_schedule_is_that_of_torch(kind: str) -> None:
    decay = {"decay_steps": DECAY} if kind == "wsd" else {}
    warmup = rates_of(LinearLR(optimizer(), start_factor=1 / WARMUP, total_iters=WARMUP - 1), WARMUP - 1)
    expected = [*warmup, *decay_by_torch(kind, TOTAL - WARMUP)[1:]]
    rates = ours(kind, **decay)
    assert rates == pytest.approx(expected, rel=1e-12)
    assert rates[WARMUP - 1] == PEAK, "the warmup ends at the peak"
    assert rates[WARMUP] < PEAK or kind in ("constant", "wsd"), "the update after it decays already"


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, WARMUP])
def test_last_update_has_the_least_rate(kind: str, warmup: int) -> None:
    assert ours(kind, warmup_steps=warmup)[-1] == pytest.approx(FLOOR * PEAK, rel=1e-12)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_decay_that_ends_early_stays_at_its_end(kind: str) -> None:
    rates = ours(kind, decay_steps=20)
    assert rates[18] > rates[19] == pytest.approx(FLOOR * PEAK)
    assert rates[19:] == [rates[19]] * 21


@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_steps_of_equal_length_are_those_of_torch(warmup: int) -> None:
    after = rates_of(StepLR(optimizer(), step_size=7, gamma=0.3), TOTAL - warmup - 1)
    rates = ours("step", warmup_steps=warmup, step_every=7, step_factor=0.3, minimum_ratio=0.0)
    assert rates[warmup:] == pytest.approx(after, rel=1e-12)
    assert rates[:warmup] == ours("constant")[:warmup]


def test_milestones_are_those_of_torch_and_count_the_warmup() -> None:
    falling = rates_of(MultiStepLR(optimizer(), milestones=[10, 11, 30], gamma=0.5), TOTAL - 1)
    rates = ours("step", milestones=[10, 11, 30], minimum_ratio=0.0)
    assert rates[WARMUP:] == pytest.approx(falling[WARMUP:], rel=1e-12)
    assert ours("step", milestones=[10, 11, 30], minimum_ratio=0.2)[-1] == 0.2 * PEAK


def test_inverse_square_root_without_warmup_begins_at_the_peak() -> None:
    rates = ours("inverse_sqrt", warmup_steps=0, minimum_ratio=0.0)
    assert rates == pytest.approx([PEAK / math.sqrt(step) for step in range(1, TOTAL + 1)], rel=1e-12)
    assert min(ours("inverse_sqrt", warmup_steps=1, minimum_ratio=0.25)) == 0.25 * PEAK


def test_cosine_begins_again_and_again() -> None:
    period = 7
    wanted = CosineAnnealingWarmRestarts(optimizer(), T_0=period, eta_min=FLOOR * PEAK)
    rates = ours("cosine_restarts", restart_every=period)
    assert rates[WARMUP:] == pytest.approx(rates_of(wanted, TOTAL - WARMUP - 1), rel=1e-12)
    assert rates[WARMUP] == rates[WARMUP + period] == PEAK
