"""What stands still to the last bit is told, kept from certificates, and nothing else: going back would not help."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from support.watchdog_run import make_config

from pretrain.ledger.history import RunHistory
from pretrain.step import Action, StepReport, TrainState, Verdict
from pretrain.watchdog.standstill import STEPS, Standstill
from pretrain.watchdog.watchdog import Watchdog


def report(
    step: int, loss: float, norm: float, rate: float = 1e-3, finite: bool = True, **measures: float
) -> StepReport:
    named = {name.replace("__", "/"): value for name, value in measures.items()}
    return StepReport(step, loss, norm, rate, 4, 128, finite=finite, measures=named)


def still(reports: list[StepReport]) -> list[tuple[str, int, float]]:
    state = Standstill()
    for one in reports:
        state = Standstill.from_state_dict(json.loads(json.dumps(state.after(one).state_dict())))
    return [(alarm.signal, alarm.onset, alarm.value) for alarm in state.alarms]


def alive(step: int) -> float:
    return 2.0 + 1e-7 * step


@pytest.mark.parametrize("value", [0.0, 7.67, 1e-12])
def test_a_loss_that_does_not_change_by_a_bit_is_told(value: float) -> None:
    moving = [report(step, alive(step), alive(step)) for step in range(1, 10)]
    stuck = [report(step, value, alive(step)) for step in range(10, 10 + STEPS)]
    assert still(moving + stuck[:-1]) == []
    assert still(moving + stuck) == [("loss", 10, value)]
    assert still(moving + stuck + [report(60, value + 1e-9, 1.0)]) == []


def test_a_gradient_that_reaches_nothing_is_told_though_losses_differ() -> None:
    assert still([report(step, alive(step), 0.0) for step in range(1, STEPS + 1)]) == [
        ("gradient_norm", 1, 0.0)
    ]


@pytest.mark.parametrize("name", ["update_rms", "update_rms__embedding", "update_rms__layer_01"])
def test_weights_that_no_update_moves_are_told_unless_the_rate_is_nought(name: str) -> None:
    """Looks that come every ten steps count one by one; update_rms of other layers goes on."""

    def course(rate: float) -> list[StepReport]:
        return [
            report(
                step,
                alive(step),
                alive(step),
                rate,
                **({name: 0.0, "update_rms__head": alive(step)} if step % 10 == 0 else {}),
            )
            for step in range(1, 10 * STEPS + 1)
        ]

    assert still(course(1e-3)) == [(name.replace("__", "/"), 10, 0.0)]
    assert still(course(0.0)) == []


def test_steps_without_numbers_are_no_standstill() -> None:
    assert still([report(step, float("nan"), float("nan"), finite=False) for step in range(1, 40)]) == []


def follow(watchdog: Watchdog, losses: Mapping[int, float]) -> list[Verdict]:
    return [
        watchdog.judge(
            report(step, loss, alive(step)), TrainState(step=step - 1, updates=step - 1), RunHistory(), (0, 4)
        )
        for step, loss in losses.items()
    ]


def test_nothing_is_done_about_it_but_nothing_is_certified_either() -> None:
    watchdog = Watchdog(make_config())
    horizon = watchdog.health.horizon
    healthy = {step: alive(step) for step in range(1, 41)}
    assert {verdict.action for verdict in follow(watchdog, healthy)} == {Action.PROCEED}
    assert watchdog.health.proven(40 - horizon, 40)
    assert not watchdog.health.doubt(40)
    dead: Any = dict.fromkeys(range(41, 100), 0.0)
    assert {verdict.action for verdict in follow(watchdog, dead)} == {Action.PROCEED}
    assert [str(alarm) for alarm in watchdog.findings.alarms] == [
        "loss has stood still at 0 since step 41: nothing is learnt"
    ]
    assert watchdog.suspicious
    assert not watchdog.curious, "full looks at each step would cost much and tell nothing"
    assert not any(watchdog.health.proven(step, 99) for step in range(50, 100))
    again = Watchdog(make_config())
    again.load_state(json.loads(json.dumps(watchdog.state_dict())), 99, RunHistory())
    assert again.health.doubt(99) == "the last step was not healthy"
    follow(again, {100: 0.0})
    assert again.findings.alarms == watchdog.findings.alarms
