"""A loss that falls is told from one that only jitters."""

import numpy as np
import pytest

from pretrain.watchdog.loss_trend import FEWEST, SPAN, LossTrend


def course(slope: float, seed: int, noise: float = 0.1) -> LossTrend:
    draw, found = np.random.default_rng(seed), LossTrend()
    for step in range(1, 301):
        found = found.after(step, 5 + slope * step + noise * float(draw.standard_normal()))
    return found


@pytest.mark.parametrize("seed", range(10))
def test_a_clear_fall_counts_and_a_rise_does_not(seed: int) -> None:
    assert course(-0.01, seed).falling(280)
    assert not course(+0.01, seed).falling(280)


def test_noise_is_seldom_taken_for_a_fall() -> None:
    assert sum(course(0.0, seed).falling(280) for seed in range(200)) < 20


def test_few_losses_say_nothing_and_what_is_not_finite_is_passed_over() -> None:
    found = LossTrend.of((step, 5.0 - step) for step in range(2 * FEWEST - 1))
    assert not found.falling(20)
    assert found.after(99, float("nan")) == found
    assert found.after(99, -50.0).falling(20)


def test_memory_is_bounded() -> None:
    assert len(course(0, 0).losses) == 2 * SPAN
