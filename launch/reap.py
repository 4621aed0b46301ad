"""This module ends what is left of one launch on this machine.

    python -m launch.reap MASTER_PORT GRACE_SECONDS RUN_FOLDER [HOST]      (exit code 0: nothing is left)

Ranks are known by the environment that their launcher gave them, and by the heartbeats of the launch in the run
folder: host, process id and start. Nothing is ended because of its name.
"""

import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from launch.ranks import find_launchers, find_orphans, is_rank, send
from launch.remote import answer
from pretrain.runtime.heartbeat import Beat, is_alive, read_beats
from pretrain.runtime.stacks import request_stacks

POLL_SECONDS = 0.1
KILL_SECONDS = 30.0
"""The kernel has so long to end a process; one in uninterruptible sleep may need longer."""


def reap(
    master_port: int, grace: float, run_folder: Path, hurry: Callable[[], bool] = lambda: False
) -> tuple[int, int]:
    """It asks what is left to stop and ends it after `grace` seconds; it returns how many it found and how many remain.

    Ranks that were asked seal a checkpoint if all of them still live; before that they leave their stacks in the run
    folder. `hurry` cuts the grace short.
    """
    found = remains(master_port, run_folder)
    for process in recorded(master_port, run_folder):
        request_stacks(process.pid)
    send(heads(found), signal.SIGTERM)
    await_end(found, grace, hurry)
    left = [*remains(master_port, run_folder), *find_launchers(master_port)]
    send(left, signal.SIGKILL)
    return len(found), len(await_end(left, KILL_SECONDS))


def remains(master_port: int, run_folder: Path) -> list[psutil.Process]:
    """It returns ranks of the launch, and processes that they started, which run on this machine."""
    found = {process.pid: process for process in find_orphans(master_port)}
    for process in recorded(master_port, run_folder):
        found.setdefault(process.pid, process)
    return [process for process in found.values() if process.is_running()]


def recorded(master_port: int, run_folder: Path) -> list[psutil.Process]:
    """It returns the launch's ranks that their heartbeats name and that still run on this machine.

    A heartbeat alone ends nothing: what it names must be a rank by its command line, too, and this user's.
    """
    beats = [beat for beat in read_beats(run_folder).values() if beat.port == master_port]
    return [process for beat in beats if (process := process_of(beat)) is not None]


def process_of(beat: Beat) -> psutil.Process | None:
    """It returns the rank of a heartbeat, if it runs on this machine."""
    if beat.host != socket.gethostname():
        return None
    try:
        process = psutil.Process(
            beat.pid
        )  # before the looks: it knows when its id is given to another process
        return process if is_alive(beat) and is_rank(process) else None
    except psutil.Error:
        return None


def heads(processes: list[psutil.Process]) -> list[psutil.Process]:
    """It returns those that no other of them has started: a rank decides itself what becomes of its helpers."""
    ids = {process.pid for process in processes}
    return [process for process in processes if parent_of(process) not in (None, *ids)]


def parent_of(process: psutil.Process) -> int | None:
    """It returns the id of the parent, or None once the process has ended, which it may do at any moment."""
    try:
        return process.ppid() if process.is_running() else None
    except psutil.NoSuchProcess:
        return None


def await_end(
    processes: list[psutil.Process], seconds: float, hurry: Callable[[], bool] = lambda: False
) -> list[psutil.Process]:
    """It waits until all have ended, and returns those that have not when time is up."""
    deadline = time.monotonic() + seconds
    while (alive := [p for p in processes if is_running(p)]) and time.monotonic() < deadline and not hurry():
        time.sleep(POLL_SECONDS)
    return alive


def is_running(process: psutil.Process) -> bool:
    """It tells whether a process still runs; one that only waits for its parent to take note does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    _, remaining = reap(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
    sys.exit(answer(min(remaining, 1), sys.argv[4:]))
