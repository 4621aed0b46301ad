"""When a launch is said to hang or to have lost a rank: only the detector's own clock counts."""

import json
import os
import socket
from pathlib import Path

import pytest

from launch.hang_detector import HangDetector
from pretrain.runtime.heartbeat import Phase, beat_file, start_of

LIMIT = 100.0


class Launch:
    """It is a run folder whose heartbeats are written by hand, and a detector with a clock that is moved by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now = folder, 0.0
        self.queued = False
        self.detector = HangDetector(
            folder, LIMIT, lost_after=30.0, clock=lambda: self.now, queued=lambda: self.queued
        )

    def beat(self, rank: int, phase: Phase = Phase.STEP, step: int = 1, **changes: object) -> None:
        """It writes a heartbeat, by default of this very process."""
        who = {
            "rank": rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": start_of(os.getpid()),
        }
        rest = {"port": 1, "step": step, "attempt": step, "phase": phase, "time": 0.0}
        path = beat_file(self.folder, rank)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({**who, **rest, **changes}))

    def after(self, seconds: float) -> str:
        """It says what is wrong, if anything, so many seconds later."""
        self.now += seconds
        trouble = self.detector.look()
        return f"{trouble.kind}: {trouble.reason}" if trouble else ""


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return Launch(tmp_path)


def test_ranks_that_beat_are_well(launch: Launch) -> None:
    for step in range(10):
        launch.beat(0, step=step)
        launch.beat(1, step=step)
        assert launch.after(0.9 * LIMIT) == ""


def test_the_rank_that_hangs_is_named(launch: Launch) -> None:
    launch.beat(1, host="elsewhere")
    for step in range(3):
        launch.beat(0, step=step)
        found = launch.after(0.6 * LIMIT)
        assert bool(found) == (step == 2)  # first seen at the first look
    assert found.startswith("hung: rank 1 ")
    assert "on elsewhere, in step 1) gave no sign of life for 120 s" in found


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.VALIDATING, Phase.SAVING, Phase.RESTORING])
def test_slow_phases_have_more_time(launch: Launch, phase: Phase) -> None:
    launch.beat(0, phase)
    assert launch.after(1.0) == ""
    assert launch.after(3.9 * LIMIT) == ""
    assert launch.after(0.2 * LIMIT).startswith("hung: rank 0 ")


def test_a_launch_in_a_queue_does_not_hang(launch: Launch) -> None:
    launch.queued = True
    assert launch.after(50 * LIMIT) == ""
    launch.queued = False
    assert launch.after(3.9 * LIMIT) == ""
    assert launch.after(0.2 * LIMIT).startswith("hung: no rank gave a sign of life")


def test_a_file_that_is_only_touched_is_a_sign_of_life(launch: Launch) -> None:
    """A full disk allows no more than a touch."""
    launch.beat(0)
    for second in range(10):
        os.utime(beat_file(launch.folder, 0), (second, second))
        assert launch.after(0.9 * LIMIT) == ""


def test_clocks_of_hosts_that_jump_are_no_news(launch: Launch) -> None:
    for step, time in enumerate([1e9, 1e9 + 86_400, 1e9 - 86_400, 0.0, -5.0]):
        launch.beat(0, step=step, time=time)
        assert launch.after(0.9 * LIMIT) == ""
    assert launch.after(1.1 * LIMIT).startswith("hung: rank 0 ")


def test_no_sign_of_life_at_all(launch: Launch) -> None:
    assert launch.after(3.9 * LIMIT) == ""
    assert launch.after(0.2 * LIMIT).startswith("hung: no rank")


def test_ranks_that_are_not_seen_from_here_are_not_missed(launch: Launch) -> None:
    """Ranks of other hosts are not seen where the run folder is not shared."""
    for step in range(20):
        launch.beat(0, step=step)
        assert launch.after(0.9 * LIMIT) == ""


def test_a_rank_has_ended_when_its_process_is_gone(launch: Launch) -> None:
    launch.beat(0)
    launch.beat(1, started=1)  # the id belongs to another process now
    assert launch.after(1.0) == ""
    launch.beat(0, step=2)
    assert launch.after(20.0) == "", "the launcher has time to notice"
    assert launch.after(20.0).startswith("lost: rank 1 ")


def test_a_rank_has_ended_when_its_heartbeat_is_gone(launch: Launch) -> None:
    launch.beat(0, host="elsewhere")
    assert launch.after(1.0) == ""
    beat_file(launch.folder, 0).unlink()
    assert launch.after(20.0) == ""
    assert launch.after(31.0).startswith("lost: rank 0 ")


def test_heartbeats_are_not_read_all_the_time(launch: Launch) -> None:
    launch.beat(0)
    assert launch.after(0.0) == ""
    beat_file(launch.folder, 0).unlink()
    launch.after(0.1)
    assert launch.detector._ended == {}
    launch.after(5.0)
    assert list(launch.detector._ended) == [0]
