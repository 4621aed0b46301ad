"""What a launch has left is ended: its own processes and no others."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.ranks import LAUNCH, send
from launch.reap import reap
from pretrain.runtime.heartbeat import beat_file, start_of

PORT = 2**16 + os.getpid()  # no launch has it, nor another process that runs these tests
MARKS = {"MASTER_PORT": str(PORT), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "CROSS_SIZE": "1"}
OBEDIENT = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
)

RANK = ("-m", "pretrain")
"""Words in the command line of a rank."""

Begin = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """It starts a process with additions to its environment, which is killed in the end."""
    running: list[subprocess.Popen[bytes]] = []

    def start(script: str, *words: str, **environment: str) -> "subprocess.Popen[bytes]":
        clean = {name: value for name, value in os.environ.items() if name not in MARKS}
        command = [sys.executable, "-c", script, *words]
        process = subprocess.Popen(command, env={**clean, **environment}, stdout=subprocess.PIPE)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def record(folder: Path, pid: int, **changes: object) -> None:
    """It writes the heartbeat of a process."""
    path = beat_file(folder, 0)
    path.parent.mkdir()
    who = {"rank": 0, "host": socket.gethostname(), "pid": pid, "started": start_of(pid), "port": PORT}
    path.write_text(json.dumps({**who, "step": 1, "attempt": 1, "phase": "step", "time": 0.0, **changes}))


def test_ranks_are_known_by_their_environment(begin: Begin, tmp_path: Path) -> None:
    process = begin(OBEDIENT, **MARKS)
    assert reap(PORT, 60.0, tmp_path) == (1, 0)
    assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("missing", sorted(MARKS))
def test_an_environment_that_is_set_by_hand_is_not_enough(begin: Begin, tmp_path: Path, missing: str) -> None:
    process = begin(OBEDIENT, **{name: value for name, value in MARKS.items() if name != missing})
    assert reap(PORT, 60.0, tmp_path) == (0, 0)
    assert process.poll() is None


def test_ranks_are_known_by_their_heartbeats(begin: Begin, tmp_path: Path) -> None:
    process = begin(OBEDIENT, *RANK)
    record(tmp_path, process.pid)
    assert reap(PORT, 60.0, tmp_path) == (1, 0)
    assert process.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize(
    "other",
    [{"host": "elsewhere"}, {"started": 1}, {"port": PORT + 1}, {"rank": 1}],
    ids=["host", "started", "port", "rank"],
)
def test_heartbeats_of_other_processes_end_nothing(
    begin: Begin, tmp_path: Path, other: dict[str, object]
) -> None:
    process = begin(OBEDIENT, *RANK)
    record(tmp_path, process.pid, **other)
    assert reap(PORT, 60.0, tmp_path) == (0, 0)
    assert process.poll() is None


@pytest.mark.parametrize("words", [(), ("pretrain", "-m"), ("-m", "pretrained"), ("-m pretrain",)])
def test_a_heartbeat_that_names_what_is_no_rank_ends_nothing(
    begin: Begin, tmp_path: Path, words: tuple[str, ...]
) -> None:
    process = begin(OBEDIENT, *words)
    record(tmp_path, process.pid)
    assert reap(PORT, 60.0, tmp_path) == (0, 0)
    assert process.poll() is None


@pytest.mark.parametrize("pid", [0, -1, 1, 2**22 + 1, 2**31, 2**63, 10**30, None, True, 2.5, "../1"])
def test_ids_that_are_no_rank_end_nothing(tmp_path: Path, pid: Any) -> None:
    """Signals to 0 and -1 reach groups of processes."""
    record(tmp_path, pid)
    assert reap(PORT, 60.0, tmp_path) == (0, 0)


@pytest.mark.parametrize("pid", [os.getpid(), os.getppid()], ids=["own", "parent"])
def test_whoever_reaps_is_no_rank(tmp_path: Path, pid: int) -> None:
    record(tmp_path, pid)
    assert reap(PORT, 60.0, tmp_path) == (0, 0)


def test_a_heartbeat_of_another_user_ends_nothing(begin: Begin, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    process = begin(OBEDIENT, *RANK)
    record(tmp_path, process.pid)
    os.chown(beat_file(tmp_path, 0), 65534, 65534)
    assert reap(PORT, 60.0, tmp_path) == (0, 0)
    assert process.poll() is None


def test_a_heartbeat_that_is_a_link_ends_nothing(begin: Begin, tmp_path: Path) -> None:
    process = begin(OBEDIENT, *RANK)
    record(tmp_path, process.pid)
    beat_file(tmp_path, 0).rename(tmp_path / "elsewhere")
    beat_file(tmp_path, 0).symlink_to(tmp_path / "elsewhere")
    assert reap(PORT, 60.0, tmp_path) == (0, 0)
    assert process.poll() is None


def test_a_process_of_another_user_is_no_rank(begin: Begin, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can start a process as another user")
    command = ["/bin/sh", "-c", "sleep 600 & wait", *RANK]
    with subprocess.Popen(command, user=65534, cwd="/", start_new_session=True) as process:
        try:
            record(tmp_path, process.pid)
            assert reap(PORT, 60.0, tmp_path) == (0, 0)
            assert process.poll() is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_ranks_that_mpirun_has_left_are_known_by_the_number_of_their_launch(
    begin: Begin, tmp_path: Path
) -> None:
    place = {"OMPI_COMM_WORLD_RANK": "0"}
    rank = begin(OBEDIENT, **{LAUNCH: str(PORT)}, **place)
    others = [begin(OBEDIENT, **{LAUNCH: str(PORT + 1)}, **place), begin(OBEDIENT, **{LAUNCH: str(PORT)})]
    assert reap(PORT, 60.0, tmp_path) == (1, 0)
    assert rank.wait(60) == -signal.SIGTERM
    assert [process.poll() for process in others] == [None, None]


def test_who_does_not_know_the_request_for_stacks_is_not_asked(begin: Begin) -> None:
    """It would end a rank that has not come so far."""
    process = begin(STUBBORN)
    assert process.stdout is not None
    process.stdout.readline()
    assert send([psutil.Process(process.pid)], signal.SIGUSR2) == 1
    process.kill()
    assert process.wait(60) == -signal.SIGKILL


def test_what_does_not_listen_is_killed_after_the_grace(begin: Begin, tmp_path: Path) -> None:
    process = begin(STUBBORN, **MARKS)
    assert process.stdout is not None
    process.stdout.readline()
    assert reap(PORT, 0.3, tmp_path) == (1, 0)
    assert process.wait(60) == -signal.SIGKILL


def test_the_grace_can_be_cut_short(begin: Begin, tmp_path: Path) -> None:
    process = begin(STUBBORN, **MARKS)
    assert process.stdout is not None
    process.stdout.readline()
    assert reap(PORT, 600.0, tmp_path, hurry=lambda: True) == (1, 0)
    assert process.wait(60) == -signal.SIGKILL


def test_helpers_of_a_rank_are_left_to_it(begin: Begin, tmp_path: Path) -> None:
    """A rank that seals a checkpoint may need them."""
    script = (
        "import signal, subprocess, sys\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "def stop(*_): code = helper.poll(); helper.communicate(b'\\n'); sys.exit(75 if code is None else 1)\n"
        "signal.signal(signal.SIGTERM, stop); print(flush=True); signal.pause()\n"
    )
    process = begin(script, **MARKS)
    assert process.stdout is not None
    process.stdout.readline()
    (helper,) = psutil.Process(process.pid).children()
    assert reap(PORT, 60.0, tmp_path) == (2, 0)
    assert process.wait(60) == 75
    assert not helper.is_running()
