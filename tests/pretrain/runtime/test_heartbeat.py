"""Signs of life: what they say, how often they are written, and that they never disturb the run."""

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support.disk import fill, small_disk

from pretrain.run_folder import HEARTBEATS
from pretrain.runtime.heartbeat import (
    Heartbeat,
    Phase,
    beat_file,
    clear_beats,
    is_alive,
    read_beat,
    read_beats,
    start_of,
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_beat_names_the_process_and_where_it_is(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path, rank=3, port=29500)
    first = read_beats(tmp_path)[3]
    assert (first.step, first.phase) == (0, Phase.STARTING)
    heartbeat.beat(7, Phase.SAVING, attempt=9)
    beat = read_beats(tmp_path)[3]
    assert (beat.host, beat.pid, beat.port) == (socket.gethostname(), os.getpid(), 29500)
    assert (beat.step, beat.attempt, beat.phase) == (7, 9, Phase.SAVING)
    assert abs(beat.time - time.time()) < 60
    assert is_alive(beat)
    assert not is_alive(replace(beat, started=beat.started - 1)), (
        "an id that was used again is another process"
    )


def test_one_beat_a_second_but_every_new_phase(tmp_path: Path) -> None:
    clock = Clock()
    heartbeat = Heartbeat(tmp_path, rank=0, port=1, clock=clock)
    seen = []
    for seconds, phase in ((0, Phase.STEP), (0.5, Phase.STEP), (0.4, Phase.SAVING), (1.1, Phase.SAVING)):
        clock.now += seconds
        heartbeat.beat(len(seen), phase)
        seen.append(read_beats(tmp_path)[0].step)
    assert seen == [0, 0, 2, 3]


def test_a_closed_heartbeat_leaves_nothing(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, rank=0, port=1):
        assert list(read_beats(tmp_path)) == [0]
    assert list((tmp_path / HEARTBEATS).iterdir()) == []


def test_a_full_disk_disturbs_nobody_and_life_still_shows(tmp_path: Path) -> None:
    clock = Clock()
    with small_disk(tmp_path / "disk", size=64 * 1024) as disk:
        heartbeat = Heartbeat(disk, rank=0, port=1, clock=clock)
        os.utime(beat_file(disk, 0), (1, 1))
        before = read_beats(disk)[0]
        ballast = fill(disk)
        clock.now += 5
        heartbeat.beat(5, Phase.STEP)
        after = read_beats(disk)[0]
        assert after.touched > before.touched
        assert after.step == 0
        assert [path.name for path in (disk / HEARTBEATS).iterdir()] == ["rank_00000.json"]
        ballast.unlink()
        clock.now += 5
        heartbeat.beat(6, Phase.STEP)
        assert read_beats(disk)[0].step == 6, "there is room again"


def test_a_planted_temporary_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / HEARTBEATS).mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / HEARTBEATS / ".rank_00000.json.tmp").symlink_to(tmp_path / "victim")
    beat_file(tmp_path, 0).symlink_to(tmp_path / "victim")
    with Heartbeat(tmp_path, rank=0, port=1):
        assert list(read_beats(tmp_path)) == [0]
    assert (tmp_path / "victim").read_text() == "precious"


def test_heartbeats_that_somebody_removes_are_made_again(tmp_path: Path) -> None:
    clock = Clock()
    with Heartbeat(tmp_path, rank=0, port=1, clock=clock) as heartbeat:
        shutil.rmtree(tmp_path / HEARTBEATS)
        clock.now += 5
        heartbeat.beat(5, Phase.STEP)
        assert read_beats(tmp_path)[0].step == 5


def test_beats_of_a_run_that_took_its_place_are_left_alone(tmp_path: Path) -> None:
    """The run folder was renamed, and another run of the name has begun."""
    clock = Clock()
    (tmp_path / "run").mkdir()
    with Heartbeat(tmp_path / "run", rank=0, port=1, clock=clock) as moved:
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        clock.now += 5
        moved.beat(5, Phase.STEP)
        assert not (tmp_path / "run").exists()
        (tmp_path / "run").mkdir()
        with Heartbeat(tmp_path / "run", rank=0, port=2, clock=clock):
            moved.beat(6, Phase.SAVING)
            moved.close()
            assert read_beats(tmp_path / "run")[0].port == 2


def test_no_folder_disturbs_nobody(tmp_path: Path) -> None:
    (tmp_path / HEARTBEATS).write_text("a file where the folder should be")
    with Heartbeat(tmp_path, rank=0, port=1) as heartbeat:
        heartbeat.beat(1, Phase.STEP)
    assert read_beats(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"phase": "dancing"}', '{"rank": 0, "phase": "step"}']
)
def test_what_is_no_beat_is_left_out(tmp_path: Path, text: str) -> None:
    Heartbeat(tmp_path, rank=1, port=1)
    beat_file(tmp_path, 0).write_text(text)
    assert list(read_beats(tmp_path)) == [1]
    assert read_beat(tmp_path / "absent") is None


def test_clearing(tmp_path: Path) -> None:
    Heartbeat(tmp_path, rank=1, port=1)
    beat_file(tmp_path, 0).with_name(".rank_00000.json.tmp").touch()
    clear_beats(tmp_path)
    assert list((tmp_path / HEARTBEATS).iterdir()) == []


def test_a_process_that_waits_to_be_reaped_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert start_of(process.pid) is not None
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_of(process.pid) is None
    process.communicate()
    assert start_of(process.pid) is None
