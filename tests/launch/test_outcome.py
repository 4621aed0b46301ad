"""The launcher's end says what became of the run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.outcome import Ending, last_step, outcome_of


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4, 5, 6, 75])
def test_codes_of_the_ranks_are_kept(code: int) -> None:
    outcome = outcome_of(Ending(code, stopping=False, orphans=0), last_step=10, steps=10)
    assert (outcome.exit_code, outcome.reason) == (code, "")


@pytest.mark.parametrize(
    ("code", "told"),
    [(-9, "SIGKILL"), (247, "SIGKILL"), (137, "SIGKILL"), (245, "SIGSEGV"), (139, "SIGSEGV")],
)
def test_a_signal_is_a_lost_peer(code: int, told: str) -> None:
    outcome = outcome_of(Ending(code, stopping=False, orphans=0), 3, 10)
    assert outcome.exit_code == 6
    assert told in outcome.reason


def test_a_launcher_that_left_ranks_behind_is_a_lost_peer() -> None:
    assert outcome_of(Ending(0, stopping=False, orphans=2), 3, 10).exit_code == 6


def test_success_before_the_last_step_is_a_lost_peer() -> None:
    outcome = outcome_of(Ending(0, stopping=False, orphans=0), 3, 10)
    assert outcome.exit_code == 6
    assert "step 3 of 10" in outcome.reason


def test_success_is_believed_where_the_metrics_lie_elsewhere() -> None:
    assert outcome_of(Ending(0, stopping=False, orphans=0), None, 10).exit_code == 0


@pytest.mark.parametrize("code", [-15, 241, 143, 246, -1, -2])
def test_a_stop_before_training_can_be_resumed(code: int) -> None:
    assert outcome_of(Ending(code, stopping=True, orphans=0), None, 10).exit_code == 75
    assert outcome_of(Ending(code, stopping=False, orphans=0), None, 10).exit_code == 6


def test_a_launch_that_left_the_queue_can_be_started_again() -> None:
    """`srun` returns 1 where its job is revoked, and so does a rank with a traceback."""
    revoked = Ending(1, stopping=True, orphans=0, unbegun=True)
    assert outcome_of(revoked, None, 10).exit_code == 75
    assert outcome_of(replace(revoked, unbegun=False), None, 10).exit_code == 1
    assert outcome_of(replace(revoked, stopping=False), None, 10).exit_code == 1


def test_last_step_of_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) is None
    path.write_text("")
    assert last_step(path) == 0
    rows = [json.dumps({"step": step, "loss": 1.0, "padding": "x" * 500}) for step in range(1, 1001)]
    path.write_text("\n".join([*rows, '{"event": "no step"}', '{"step": 10']))
    assert last_step(path) == 1000


def test_a_last_row_of_any_length_counts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    deep = {f"activation_rms/block {number}": 0.1 for number in range(10_000)}
    path.write_text("".join(json.dumps({"step": step, "loss": 1.0, **deep}) + "\n" for step in (1, 2, 3)))
    assert last_step(path) == 3
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert last_step(path) == 3
