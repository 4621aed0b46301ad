"""What changes on purpose is no trouble: baselines begin anew, and the ledger knows why."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from support.distributed import run_distributed
from support.runs import run_and_stop
from support.training import Layout, make_config
from support.watched import changed, kinds, one, run, watched

from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError
from pretrain.ledger.history import RunHistory
from pretrain.ledger.record import Kind, Record
from pretrain.step import StepReport, TrainState
from pretrain.watchdog.watchdog import Watchdog


@pytest.fixture
def config() -> RunConfig:
    return changed(make_config(Layout()), watchdog={"window": 32}, run={"steps": 1000})


def test_a_session_with_other_settings_begins_with_new_baselines(corpus: Path, tmp_path: Path) -> None:
    config = watched(Layout(tensor=2), tmp_path, corpus)
    assert run_distributed(run_and_stop, 2, config, 20) == ["preempted"] * 2
    elsewhere = copytree(corpus, tmp_path / "moved" / "data")
    data = {"sources": [{"path": str(elsewhere)}], "prefetch_steps": 3, "damaged_sample_budget": 1}
    quiet = changed(config, checkpoint={"keep_last": 9}, data=data, model={"activation_checkpointing": True})
    assert run_distributed(run_and_stop, 2, quiet, 24) == ["preempted"] * 2
    assert "rebaseline" not in kinds(tmp_path)
    faster = changed(quiet, optimizer={"learning_rate": 0.02})
    assert run_distributed(run, 2, faster) == ["finished"] * 2
    told = one(tmp_path, Kind.REBASELINE)
    assert told.fields == {"reason": "optimizer.learning_rate 0.01 -> 0.02", "declared": True}
    records = kinds(tmp_path)
    assert records[records.index("rebaseline") - 1] == "resumed"


@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "wsd", "decay_steps": 8},
        {"kind": "step", "milestones": [22]},
        {"kind": "cosine_restarts", "restart_every": 22},
    ],
    ids=str,
)
def test_the_decay_of_a_schedule_is_declared_once(
    schedule: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    config = changed(watched(Layout(), tmp_path, corpus), schedule=schedule)
    assert run_distributed(run, 1, config) == ["finished"]
    told = one(tmp_path, Kind.REBASELINE)
    assert (told.step, told.fields["declared"]) == (23, False)  # after 22 of 30 updates


def steps(watchdog: Watchdog, first: int, last: int, loss: float) -> list[bool]:
    """Judge steps with a loss that hardly moves; at which of them a baseline was there."""
    armed = []
    for step in range(first, last + 1):
        report = StepReport(step, loss * (1 + step % 3 / 100), 1 + step % 2 / 100, 1e-3, 4, 128)
        watchdog.judge(
            report, TrainState(step - 1, step - 1, attempt=step - 1), RunHistory(), (step, step + 1)
        )
        armed.append("wd/sum/loss" in watchdog.findings.scalars)
    return armed


def test_a_candidate_from_before_the_change_is_taken_up_without_its_baselines(config: RunConfig) -> None:
    watchdog = Watchdog(config)
    assert steps(watchdog, 1, 60, loss=5.0)[-1]
    state = watchdog.state_dict()
    record = Record(Kind.REBASELINE, 40, 60, 1, {"reason": "", "declared": True})  # steps turn back
    history = RunHistory().after(record)

    later, earlier = Watchdog(config), Watchdog(config)
    later.load_state(state, 61, history)
    earlier.load_state(state, 60, history)
    assert steps(later, 61, 61, loss=5.0) == [True]
    assert steps(earlier, 61, 61, loss=50.0) == [False]
    assert not earlier.suspicious


@pytest.mark.parametrize("key", ["detectors", "memory", "health", "draws"])
@pytest.mark.parametrize("odd", [None, "x", 7, [[1]]], ids=str)
def test_a_state_that_no_watchdog_had_is_refused(config: RunConfig, key: str, odd: object) -> None:
    watchdog = Watchdog(config)
    steps(watchdog, 1, 3, loss=5.0)
    with pytest.raises(CheckpointError, match="saved state of the watchdog"):
        watchdog.load_state({**watchdog.state_dict(), key: odd}, 3, RunHistory())


def test_a_loss_that_is_higher_on_purpose_alarms_without_a_declaration_only(config: RunConfig) -> None:
    for declared in (False, True):
        watchdog = Watchdog(config)
        steps(watchdog, 1, 200, loss=5.0)
        if declared:
            watchdog.rebaseline()
        steps(watchdog, 201, 220, loss=7.0)
        assert bool(watchdog.findings.alarms) is not declared


def test_thresholds_that_are_calibrated_are_told(config: RunConfig) -> None:
    """Waves that a threshold from a formula does not expect raise it."""
    watchdog, told = Watchdog(config), []
    for step in range(1, 900):
        loss = 5.0 * (1 + 0.05 * ((step // 3) % 2))
        report = StepReport(step, loss, 1.0, 1e-3, 4, 128)
        watchdog.judge(
            report, TrainState(step - 1, step - 1, attempt=step - 1), RunHistory(), (step, step + 1)
        )
        told += [watchdog.findings.calibrated] if watchdog.findings.calibrated else []
    assert told
    assert set(told[0]["loss"]) == {"high", "low"}
