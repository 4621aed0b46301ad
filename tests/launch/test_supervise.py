"""The supervisor, around stand-in ranks, launches again what it should, gives up in time, and leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.ranks import find_launchers, find_orphans, send
from launch.supervise import FINAL
from pretrain.errors import ConfigurationError
from pretrain.run_folder import HEARTBEATS
from pretrain.runtime.heartbeat import Beat, read_beats
from pretrain.runtime.run_lock import RunLock
from pretrain.runtime.stacks import stacks_file

ROOT = Path(__file__).parents[2]
SECONDS = 120.0


class Run:
    """It is one supervised run, with what that says of itself."""

    def __init__(self, folder: Path, launcher: str, *words: str) -> None:
        self.folder = folder
        script = str(ROOT / "tests/support/stand_in_supervised.py")
        self.log = folder.parent / f"{folder.name}.log"
        self.process = subprocess.Popen(
            [sys.executable, script, launcher, str(folder), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stderr=self.log.open("a"),
            start_new_session=True,
        )

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """It returns the events of the supervisor, all or those of one kind."""
        path = self.folder / "supervisor.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [row for row in rows if kind in ("", row["kind"])]

    def kinds(self) -> list[str]:
        """It returns the kinds of all events in their order."""
        return [event["kind"] for event in self.events()]

    def started(self, launch: int) -> dict[str, Any]:
        """It returns the event of a launch, once both of its ranks are at work."""
        self.wait_for(lambda: len(self.events("started")) >= launch)
        self.wait_for(lambda: len(self.beats(launch)) == 2)
        return self.events("started")[launch - 1]

    def beats(self, launch: int) -> dict[int, Beat]:
        """It returns heartbeats of ranks that are at work in a launch; stand-ins name it as their step."""
        return {rank: beat for rank, beat in read_beats(self.folder).items() if beat.step == launch}

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """It waits until the condition holds, and fails when that takes too long."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"waited too long: {self.log.read_text()}"
            time.sleep(0.05)

    def end(self) -> int:
        """It waits for the end and returns the exit code."""
        return self.process.wait(SECONDS)

    def left_behind(self) -> list[object]:
        """It returns processes and files that should not be there."""
        ports = [event["port"] for event in self.events("started")]
        pids = [event["pid"] for event in self.events("started")]
        alive: list[object] = [p for port in ports for p in (*find_orphans(port), *find_launchers(port))]
        alive += [pid for pid in pids if psutil.pid_exists(pid)]
        return [*alive, *(self.folder / HEARTBEATS).iterdir(), *self.folder.glob(".*")]


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """It starts a supervised run in `tmp_path/run`; what is left of that is killed in the end."""
    runs: list[Run] = []

    def begin(*words: str, launcher: str = "stand_in") -> Run:
        runs.append(Run(tmp_path / "run", launcher, *words))
        return runs[-1]

    yield begin
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait(SECONDS)
        for event in run.events("started"):
            send([*find_launchers(event["port"]), *find_orphans(event["port"])], signal.SIGKILL)


def test_a_lost_rank_costs_a_relaunch(start: Start) -> None:
    run = start("work,done")
    run.started(1)
    os.kill(run.beats(1)[1].pid, signal.SIGKILL)
    assert run.end() == 0
    assert run.kinds() == ["started", "lost", "relaunch", "started", "done"]
    assert "SIGKILL" in run.events("lost")[0]["reason"]
    assert run.left_behind() == []


def test_a_killed_launcher_costs_a_relaunch_and_leaves_no_ranks(start: Start) -> None:
    run = start("work,done")
    os.kill(run.started(1)["pid"], signal.SIGKILL)
    assert run.end() == 0
    assert run.kinds() == ["started", "lost", "relaunch", "started", "done"]
    assert run.left_behind() == []


@pytest.mark.parametrize("rank", [0, 1])
def test_a_hung_rank_is_noticed(start: Start, rank: int) -> None:
    run = start("work,done", "hang_after=2", "grace=0.5")
    run.started(1)
    os.kill(run.beats(1)[rank].pid, signal.SIGSTOP)
    assert run.end() == 0
    assert run.kinds() == ["started", "hung", "relaunch", "started", "done"]
    assert f"rank {rank} " in run.events("hung")[0]["reason"]
    assert run.left_behind() == []


def test_ranks_that_are_given_up_leave_their_stacks(start: Start) -> None:
    run = start("mute,done", "hang_after=2", "grace=0.5")
    run.started(1)
    assert run.end() == 0
    for rank in (0, 1):
        text = stacks_file(run.folder, rank).read_text()
        assert text.count("process ") == 1
        assert "stand_in_worker.py" in text


def test_a_launcher_that_does_not_notice_a_lost_rank(start: Start) -> None:
    run = start("work,done", "lost_after=0.5", "grace=0.5")
    launcher = run.started(1)["pid"]
    os.kill(launcher, signal.SIGSTOP)
    os.kill(run.beats(1)[1].pid, signal.SIGKILL)
    assert run.end() == 0
    assert "rank 1 " in run.events("lost")[0]["reason"]
    assert run.left_behind() == []


def test_success_without_done_is_none(start: Start) -> None:
    run = start("zero,done")
    assert run.end() == 0
    assert run.kinds() == ["started", "lost", "relaunch", "started", "done"]


def test_a_done_of_an_earlier_time_does_not_count(start: Start) -> None:
    assert start("done").end() == 0
    again = start("zero", "relaunches=1")
    assert again.end() == 6
    assert again.kinds()[-1] == "gave up"


def test_codes_that_end_a_run() -> None:
    assert {2, 3, 4, 5, 75} == FINAL


@pytest.mark.parametrize("code", [4, 75])
def test_what_another_launch_would_not_change_ends_the_run(start: Start, code: int) -> None:
    run = start(f"exit={code}")
    assert run.end() == code
    assert run.kinds() == ["started", "ended"]
    assert run.left_behind() == []


def test_gives_up_without_progress_and_waits_longer_each_time(start: Start) -> None:
    run = start("exit=1,exit=6", "relaunches=3")
    assert run.end() == 6, "the last code"
    assert len(run.events("started")) == 4
    delays = [event["reason"].split()[-2] for event in run.events("relaunch")]
    assert len(delays) == 3
    assert [event["failures"] for event in run.events("relaunch")] == [1, 2, 3]
    assert "sealed no checkpoint behind step 0" in run.events("gave up")[0]["reason"]


def test_progress_renews_the_budget(start: Start) -> None:
    run = start("exit=1,seal,exit=1,seal,exit=1", "relaunches=2")
    assert run.end() == 1
    # 1 | 2 seals: 1st failure behind it, 3: 2nd | 4 seals: 1st, 5: 2nd, 6: 3rd
    assert [event["failures"] for event in run.events("relaunch")] == [1, 1, 2, 1, 2]
    assert "behind step 4" in run.events("gave up")[0]["reason"]


def test_a_second_launch_is_refused_and_disturbs_nothing(start: Start) -> None:
    run = start("work,done")
    run.started(1)
    second = start("done")
    assert second.end() == 2
    assert f"process {run.process.pid}" in second.log.read_text()
    assert len(run.beats(1)) == 2
    os.kill(run.beats(1)[1].pid, signal.SIGKILL)
    assert run.end() == 0


def test_a_run_without_supervisor_is_not_touched(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with RunLock(tmp_path / "run"):
        refused = start("done")
        assert refused.end() == 2
    assert refused.kinds() == []


def test_the_run_folder_must_be_free_before_a_relaunch(start: Start, tmp_path: Path) -> None:
    """A lock may outlive its process for a while, on a network file system."""
    run = start("work,done", "wait_for_hosts=100")
    run.started(1)
    os.kill(run.beats(1)[0].pid, signal.SIGKILL)
    with take_lock(tmp_path / "run"):  # before the launcher has noticed
        run.wait_for(lambda: run.kinds()[-1:] == ["waiting"])
        assert f"process {os.getpid()}" in run.events("waiting")[0]["reason"]
    assert run.end() == 0
    assert run.kinds() == ["started", "lost", "waiting", "relaunch", "started", "done"]


def take_lock(folder: Path) -> RunLock:
    while True:
        try:
            return RunLock(folder)
        except ConfigurationError:
            time.sleep(0.001)


def test_somebody_else_was_quicker(start: Start, tmp_path: Path) -> None:
    run = start("exit=1,done", "first_delay=3")
    run.wait_for(lambda: run.kinds()[-1:] == ["relaunch"])
    with RunLock(tmp_path / "run"):
        assert run.end() == 2
    assert len(run.events("started")) == 2


def test_a_signal_between_two_launches_ends_the_run(start: Start) -> None:
    run = start("exit=1", "first_delay=600")
    run.wait_for(lambda: run.kinds()[-1:] == ["relaunch"])
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 75
    assert run.left_behind() == []


def test_events_that_cannot_be_written_end_nothing(start: Start, tmp_path: Path) -> None:
    """What is somebody else's file as well is not appended to."""
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_text('{"kind": "precious"}\n')
    (tmp_path / "run" / "supervisor.jsonl").hardlink_to(tmp_path / "victim")
    run = start("zero,done")
    assert run.process.wait(SECONDS) == 0
    assert "relaunch" in run.log.read_text()
    assert (tmp_path / "victim").read_text() == '{"kind": "precious"}\n'


@pytest.mark.parametrize("name", ["supervisor.jsonl", "supervised.toml", "heartbeats", "stacks", "run.lock"])
def test_a_planted_link_is_refused_before_anything_is_written(
    name: str, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "rank_00000.json").write_text("precious")
    (tmp_path / "run" / name).symlink_to(tmp_path / "victim")
    run = start("done")
    assert run.process.wait(SECONDS) == 2
    assert "is a link" in run.log.read_text()
    assert (tmp_path / "victim" / "rank_00000.json").read_text() == "precious"
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["rank_00000.json"]


def test_deepspeed_a_signal_is_passed_on_and_ends_the_run(start: Start) -> None:
    run = start("work", launcher="deepspeed")
    run.started(1)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 75
    assert run.kinds() == ["started", "ended"]
    assert run.left_behind() == []


@pytest.mark.slow
def test_deepspeed_survives_one_loss_after_the_other(start: Start) -> None:
    """A rank, the parent of the ranks and the command itself are killed; then a rank hangs; then the run is done."""
    run = start("work,work,work,work,done", "relaunches=4", "hang_after=3", launcher="deepspeed")
    run.started(1)
    os.kill(run.beats(1)[0].pid, signal.SIGKILL)
    port = run.started(2)["port"]
    (parent,) = find_launchers(port)
    parent.kill()
    os.kill(run.started(3)["pid"], signal.SIGKILL)
    run.started(4)
    os.kill(run.beats(4)[1].pid, signal.SIGSTOP)
    assert run.end() == 0
    again = ["lost", "relaunch", "started"]
    assert run.kinds() == ["started", *again, *again, *again, "hung", "relaunch", "started", "done"]
    assert run.left_behind() == []
