"""When a candidate has proven healthy."""

import json

import numpy as np
import pytest

from pretrain.watchdog.health import Health


def noted(losses: list[float], horizon: int = 32) -> Health:
    health = Health(horizon)
    for step, loss in enumerate(losses, start=1):
        health.note(step, loss, healthy=True)
    return health


def noisy(count: int, level: float, seed: int) -> list[float]:
    return (level * (1 + 0.01 * np.random.default_rng(seed).standard_normal(count))).tolist()


def test_a_horizon_counts_from_the_candidate_and_from_the_last_suspicion() -> None:
    health = Health(4)
    for step in range(1, 8):
        health.note(step, 3.0, healthy=step != 5)
    assert health.proven(2, 4) is False
    assert health.proven(2, 8) is False
    assert health.proven(2, 9) is True


@pytest.mark.parametrize("seed", range(20))
def test_noise_and_a_falling_loss_are_no_damage(seed: int) -> None:
    assert not noted(noisy(64, 3.0, seed)).damaged(32)
    falling = [loss * (1 - 0.001 * step) for step, loss in enumerate(noisy(64, 3.0, seed))]
    assert not noted(falling).damaged(32)


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_that_settles_two_percent_higher_is_damage(seed: int) -> None:
    assert noted(noisy(128, 3.0, seed) + noisy(128, 3.06, seed + 100), horizon=128).damaged(128)


def test_too_few_steps_say_nothing() -> None:
    assert not noted([3.0] * 32 + [6.0] * 8).damaged(32)


def test_state_comes_back() -> None:
    health, copy = noted(noisy(40, 3.0, 0)), Health(32)
    health.note(41, 9.0, healthy=False)
    copy.load_state_dict(json.loads(json.dumps(health.state_dict())))
    assert copy.state_dict() == health.state_dict()
    assert copy.proven(2, 72) == health.proven(2, 72)
