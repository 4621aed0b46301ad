"""Finds the ranks of one launch on this machine and sends them a signal.

DeepSpeed's own launcher answers SIGTERM by killing: each rank gets it, has 30 seconds, and the exit code is
lost. So signals go past it, straight to the ranks, once each; the launcher then sees them exit by themselves.

    python -m launch.ranks MASTER_PORT SIGNAL      (exit code 1: no ranks are here)
"""

import os
import signal
import sys

import psutil

LAUNCHER_MODULE = "deepspeed.launcher.launch"
"""The parent of the ranks on each host."""
MARKS = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "CROSS_SIZE"})
"""Variables that the launcher gives to its ranks; no shell that set up a world by hand has them all."""


def find_launchers(master_port: int) -> list[psutil.Process]:
    """DeepSpeed's launchers on this machine that were given `master_port`."""
    return [process for process in psutil.process_iter() if is_launcher(process, master_port)]


def find_ranks(master_port: int) -> list[psutil.Process]:
    """The ranks on this machine whose launcher was given `master_port`."""
    return [rank for launcher in find_launchers(master_port) for rank in children(launcher)]


def find_orphans(master_port: int) -> list[psutil.Process]:
    """Ranks, and processes that they started, which still run on this machine when their launcher is gone."""
    return [process for process in psutil.process_iter() if belongs_to_launch(process, master_port)]


def is_launcher(process: psutil.Process, master_port: int) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    # pdsh, ssh and shells have the launcher's command among their words, too, but not at their start.
    return command[1:4] == ["-u", "-m", LAUNCHER_MODULE] and f"--master_port={master_port}" in command


def belongs_to_launch(process: psutil.Process, master_port: int) -> bool:
    """Whether a process of this user has the environment of a rank."""
    try:
        environment, owner = process.environ(), process.uids().real
    except psutil.Error:
        return False
    return (
        environment.get("MASTER_PORT") == str(master_port)
        and environment.keys() >= MARKS
        and owner == os.getuid()
    )


def children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children())
    except psutil.Error:
        return []


def send(processes: list[psutil.Process], signal_number: int) -> int:
    """Signal the processes that still run; returns how many that were."""
    reached = 0
    for process in processes:
        try:
            process.send_signal(signal_number)
            reached += 1
        except psutil.NoSuchProcess:
            continue
    return reached


if __name__ == "__main__":
    sys.exit(0 if send(find_ranks(int(sys.argv[1])), signal.Signals[sys.argv[2]]) else 1)
