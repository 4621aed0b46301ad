"""This module finds the ranks of one launch on this machine and sends them a signal.

DeepSpeed's own launcher answers SIGTERM by killing: each rank gets it, has 30 seconds, and the exit code is
lost. So signals go past it, straight to the ranks, once each; the launcher then sees them exit by themselves.

    python -m launch.ranks MASTER_PORT SIGNAL [HOST]      (exit code 1: no ranks are here)
"""

import os
import signal
import sys
from itertools import pairwise

import psutil

from launch.command import MODULE
from launch.remote import answer
from pretrain.runtime.stacks import REQUEST, request_stacks

LAUNCHER_MODULE = "deepspeed.launcher.launch"
"""This module runs as the parent of the ranks on each host."""
LAUNCH = "SUREFOOT_LAUNCH"
"""Ranks that `mpirun` starts for us have the number of their launch in this variable."""
MARKS = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "CROSS_SIZE"})
"""The launcher gives these variables to its ranks; no shell that set up a world by hand has them all."""


def find_launchers(master_port: int) -> list[psutil.Process]:
    """It returns DeepSpeed's launchers on this machine that were given `master_port`."""
    return [process for process in psutil.process_iter() if is_launcher(process, master_port)]


def find_ranks(master_port: int) -> list[psutil.Process]:
    """It returns the ranks on this machine whose launcher was given `master_port`."""
    return [rank for launcher in find_launchers(master_port) for rank in children(launcher)]


def find_orphans(master_port: int) -> list[psutil.Process]:
    """It returns ranks, and processes that they started, which still run here when their launcher is gone."""
    return [process for process in psutil.process_iter() if belongs_to_launch(process, master_port)]


def is_rank(process: psutil.Process) -> bool:
    """It tells whether a process of this user was started as a rank is: `python ... -m pretrain ...`."""
    try:
        command, owner = process.cmdline(), process.uids().real
    except psutil.Error:
        return False
    return owner == os.getuid() and ("-m", MODULE) in pairwise(command)


def is_launcher(process: psutil.Process, master_port: int) -> bool:
    """It tells whether a process is DeepSpeed's launcher of this launch, and this user's."""
    try:
        command, owner = process.cmdline(), process.uids().real
    except psutil.Error:
        return False
    if owner != os.getuid():
        return False
    # pdsh, ssh and shells have the launcher's command among their words, too, but not at their start.
    return command[1:4] == ["-u", "-m", LAUNCHER_MODULE] and f"--master_port={master_port}" in command


def belongs_to_launch(process: psutil.Process, master_port: int) -> bool:
    """It tells whether a process of this user has the environment of a rank of this launch."""
    try:
        environment, owner = process.environ(), process.uids().real
    except psutil.Error:
        return False
    by_deepspeed = environment.get("MASTER_PORT") == str(master_port) and environment.keys() >= MARKS
    by_mpirun = environment.get(LAUNCH) == str(master_port) and "OMPI_COMM_WORLD_RANK" in environment
    return owner == os.getuid() and (by_deepspeed or by_mpirun)


def children(process: psutil.Process) -> list[psutil.Process]:
    """It returns the children of a process, none where that has ended."""
    try:
        return list(process.children())
    except psutil.Error:
        return []


def send(processes: list[psutil.Process], signal_number: int) -> int:
    """It signals the processes that still run, and returns how many that were.

    The request for stacks would end one that does not know it yet: that is left alone.
    """
    reached = 0
    for process in processes:
        try:
            if signal_number == REQUEST:
                request_stacks(process.pid)
            else:
                process.send_signal(signal_number)
            reached += 1
        except psutil.NoSuchProcess:
            continue
    return reached


if __name__ == "__main__":
    sent = send(find_ranks(int(sys.argv[1])), signal.Signals[sys.argv[2]])
    sys.exit(answer(0 if sent else 1, sys.argv[3:]))
