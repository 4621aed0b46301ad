"""The real DeepSpeed launcher around stand-in ranks: signals reach every rank once, exit codes come back."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.training import slow

from launch.process import forwarding
from launch.ranks import find_orphans, find_ranks, is_launcher, send
from pretrain.runtime.signals import StopSignals

ROOT = Path(__file__).parents[2]
SECONDS = 120.0

Start = Callable[[str], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """It starts a launch in its own session; what is left of that is killed in the end."""
    running: list[subprocess.Popen[bytes]] = []

    def launch(mode: str) -> "subprocess.Popen[bytes]":
        script = str(ROOT / "tests/support/stand_in_train.py")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, script, str(tmp_path), mode],
            env=environment,
            stdout=(tmp_path / "output").open("w"),
            start_new_session=True,
        )
        running.append(process)
        return process

    yield launch
    for process in running:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
        process.wait(SECONDS)
    if (tmp_path / "port").exists():
        send(find_orphans(port_of(tmp_path)), signal.SIGKILL)


def wait_for(condition: Callable[[], bool]) -> None:
    """It waits until the condition holds, and fails when that takes too long."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def wait_until_ready(folder: Path) -> list[int]:
    """It waits until both ranks are at work, and returns their process ids."""
    files = [folder / f"rank-{rank}.pid" for rank in (0, 1)]
    wait_for(lambda: all(file.exists() and file.read_text() for file in files))
    return [int(file.read_text()) for file in files]


def port_of(folder: Path) -> int:
    """It returns the port that the launch was given."""
    return int((folder / "port").read_text())


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (signal.SIGTERM, "SIGTERM"),
        slow(signal.SIGUSR1, "SIGUSR1"),
        (signal.SIGINT, "SIGTERM"),
        slow(signal.SIGHUP, "SIGTERM"),
    ],
)
def test_a_signal_reaches_every_rank_and_the_code_comes_back(
    start: Start, tmp_path: Path, sent: signal.Signals, received: str
) -> None:
    process = start("seal")
    wait_until_ready(tmp_path)
    process.send_signal(sent)
    assert process.wait(SECONDS) == 75
    for rank in (0, 1):
        assert (tmp_path / f"rank-{rank}.signals").read_text().split()[0] == received
        assert (tmp_path / f"rank-{rank}.sealed").exists(), "the rank had no time to seal its checkpoint"


def test_nohup_is_respected() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with forwarding() as pending, StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert (list(pending), signals.received) == ([], None)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with forwarding() as pending:
            os.kill(os.getpid(), signal.SIGHUP)
            assert list(pending) == [signal.SIGHUP]
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_second_interrupt_ends_the_run_at_once(start: Start, tmp_path: Path) -> None:
    process = start("wait")
    ranks = wait_until_ready(tmp_path)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: (tmp_path / "rank-1.signals").exists())
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 6
    wait_for(lambda: not any(psutil.pid_exists(rank) for rank in ranks))


def test_a_signal_to_every_process_asks_for_the_end(start: Start, tmp_path: Path) -> None:
    """So service managers stop what they have started, and Slurm a job. DeepSpeed's processes die of it at once."""
    process = start("seal")
    wait_until_ready(tmp_path)
    os.kill(process.pid, signal.SIGSTOP)  # what reads the signals comes last
    send(psutil.Process(process.pid).children(recursive=True), signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert process.wait(SECONDS) == 75
    assert all((tmp_path / f"rank-{rank}.sealed").exists() for rank in (0, 1))


def test_exit_codes_of_the_ranks_come_back(start: Start) -> None:
    assert start("exit=3").wait(SECONDS) == 3


def test_a_killed_rank_is_a_lost_peer(start: Start, tmp_path: Path) -> None:
    process = start("seal")
    ranks = wait_until_ready(tmp_path)
    os.kill(ranks[1], signal.SIGKILL)
    assert process.wait(SECONDS) == 6
    assert "SIGKILL" in (tmp_path / "output").read_text()


def test_a_killed_launcher_is_noticed_and_leaves_no_ranks(start: Start, tmp_path: Path) -> None:
    """DeepSpeed returns 0 here and leaves the ranks running."""
    process = start("seal")
    ranks = wait_until_ready(tmp_path)
    port = port_of(tmp_path)
    assert {rank.pid for rank in find_ranks(port)} == set(ranks)
    assert find_ranks(port + 1) == []
    (launcher,) = [found for found in psutil.process_iter() if is_launcher(found, port)]
    launcher.kill()
    assert process.wait(SECONDS) == 6
    assert "2 processes" in (tmp_path / "output").read_text()
    wait_for(lambda: not any(psutil.pid_exists(rank) for rank in ranks))
