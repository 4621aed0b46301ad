"""What a configuration says of when the watchdog begins to look is what the watchdog does."""

import pytest
from support.watchdog_run import make_config
from support.watched import changed

from pretrain.config.run import RunConfig
from pretrain.plan.arming import SHORT_WINDOW, arming_warnings, first_comparison, probed_window, watched_from
from pretrain.step import StepReport
from pretrain.watchdog.detectors import Detectors


def configured(steps: int, warmup: int, window: int, every: int = 10, **watchdog: int) -> RunConfig:
    return changed(
        make_config(window=window, **watchdog),
        run={"steps": steps},
        schedule={"warmup_steps": warmup},
        probes={"every_steps": every},
    )


def begins(config: RunConfig, signal: str, every: int) -> int:
    """The first step that the detectors compare a signal at, whose value comes every so many steps."""
    detectors = Detectors(config)
    for step in range(1, 3000):
        loss = 3 + step % 7 / 100
        measures = {"attention_entropy_mean": loss} if step % every == 0 else {}
        before = (
            f"wd/z/{signal}"
            in detectors.look(StepReport(step, loss, loss, 1e-3, 4, 128, measures=measures)).scalars
        )
        if before:
            return step + every  # what completes a baseline is not compared with it yet
    raise AssertionError("never")


@pytest.mark.parametrize(("warmup", "window", "every"), [(0, 16, 1), (30, 128, 4), (7, 64, 10), (95, 512, 3)])
def test_it_begins_where_the_plan_says(warmup: int, window: int, every: int) -> None:
    config = configured(3000, warmup, window, every)
    assert begins(config, "loss", 1) == watched_from(config)
    expected = first_comparison(warmup, probed_window(config), every)
    assert begins(config, "attention_entropy_mean", every) == expected


def told(config: RunConfig) -> list[str]:
    return list(arming_warnings(config))


def test_a_window_that_a_run_is_too_short_for_is_told_with_one_that_works() -> None:
    (told_,) = told(configured(250, 30, 512))
    assert "from step 559 on" in told_
    assert "the run has 250" in told_
    assert "for example window = 64 begins at step 111" in told_
    fitting = configured(250, 30, 64, every=1)
    assert watched_from(fitting) == 111
    assert told(fitting) == []


@pytest.mark.parametrize("steps", [60, 150, 219])
def test_a_run_that_no_window_fits_is_told_how_long_it_would_have_to_be(steps: int) -> None:
    (told_,) = told(configured(steps, 30, 512))
    assert "takes a run of 222 steps" in told_
    assert watched_from(configured(222, 30, SHORT_WINDOW)) <= 111


def test_probes_that_look_too_rarely_are_told_of_and_how_often_would_do() -> None:
    (told_,) = told(configured(600, 30, 64, every=10))
    assert "probes.every_steps = 10" in told_
    every = int(told_.rpartition("= ")[2])
    assert told(configured(600, 30, 64, every=every)) == []
    assert told(configured(600, 30, 64, every=every + 1))


@pytest.mark.parametrize("steps", [600, 10**9])
def test_however_rarely_probes_look_it_is_told_at_once(steps: int) -> None:
    (told_,) = told(configured(steps, 30, 64, every=2**52))
    every = int(told_.rpartition("= ")[2])
    assert told(configured(steps, 30, 64, every=every)) == []


def test_a_horizon_that_never_passes_is_told() -> None:
    (told_,) = told(configured(200, 0, 64, every=1, horizon=200))
    assert "watchdog.horizon = 200" in told_
    assert told(configured(200, 0, 64, every=1, horizon=25)) == []


def test_a_long_run_and_one_without_a_watchdog_have_nothing_to_hear() -> None:
    assert told(configured(4000, 100, 512)) == []
    assert told(configured(100, 30, 512, enabled=False)) == []
