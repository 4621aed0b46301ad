"""When a candidate has proven healthy."""

import json
import math
from collections.abc import Sequence

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


HORIZON = 32


def at_the_end(losses: list[float], validations: Sequence[float] = ()) -> str:
    health = Health(HORIZON)
    for step, loss in enumerate(losses, start=1):
        health.note(step, loss, healthy=True)
    for number, loss in enumerate(validations):
        health.note_validation(10 * number, loss)
    return health.doubt(len(losses))


NOISE = [3 + 0.01 * math.sin(40 * step) for step in range(60)]


def test_nothing_speaks_against_the_end_of_a_healthy_run() -> None:
    assert at_the_end(NOISE) == at_the_end(NOISE, [3.1]) == at_the_end(NOISE, [3.1, 3.0, 3.05]) == ""
    assert at_the_end(NOISE[:2]) == "", "a short run has nothing to compare with"


def test_losses_that_rise_in_the_last_steps_speak_against_the_last_checkpoint() -> None:
    assert "last 3 steps" in at_the_end([*NOISE, 3.2, 3.2, 3.2])
    assert at_the_end([*NOISE, 3.2]) == "", "one bad batch says nothing"


@pytest.mark.parametrize("last", [3.2, math.inf, math.nan])
def test_a_validation_loss_that_has_risen_speaks_against_it_too(last: float) -> None:
    assert "validation loss has risen from 3.0000 at step 10" in at_the_end(NOISE, [3.1, 3.0, last])
    assert at_the_end(NOISE, [-3.0, -2.99]) == "", "losses of densities may be negative"
    assert at_the_end(NOISE, [-3.0, -2.9])


def test_an_unhealthy_last_step_speaks_against_it_also_in_the_next_session() -> None:
    health = Health(HORIZON)
    for step, loss in enumerate(NOISE, start=1):
        health.note(step, loss, healthy=step < len(NOISE))
    again = Health(HORIZON)
    again.load_state_dict(json.loads(json.dumps(health.state_dict())))
    assert again.doubt(len(NOISE)) == health.doubt(len(NOISE)) == "the last step was not healthy"
    health.note(len(NOISE) + 1, 3.0, healthy=True)
    assert health.doubt(len(NOISE) + 1) == ""


def test_a_validation_loss_that_rises_and_rises_is_told() -> None:
    health = Health(HORIZON)
    told = [health.note_validation(step, loss) for step, loss in enumerate([3.0, 2.9, 3.0, 3.1, 3.2, 3.1])]
    assert [bool(text) for text in told] == [False] * 4 + [True, False]
    assert "3 times in a row, from 2.9000 to 3.2000" in told[4]
    assert not any(health.note_validation(step, 3.0 + 1e-3 * step) for step in range(10)), "by less than 2 %"
