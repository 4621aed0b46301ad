"""A job step of Slurm may wait for hours until there is room for it; whether it does, Slurm tells."""

import re
import socket
import subprocess
import time
from collections.abc import Callable

SHOW_STEPS = ("scontrol", "--oneliner", "show", "step")
SECONDS_BETWEEN = 10.0
"""Slurm is asked no more often: its controller answers everybody."""
ANSWER_SECONDS = 60.0


def has_begun(steps: str, host: str, pid: int) -> bool:
    """It tells whether the `srun` with this process id has a step, from what `scontrol` shows of all: a line each.

    One that waits for room among the other steps of its job is shown, too, as pending.
    """
    begun = "\n".join(line for line in steps.splitlines() if not re.search(r"\bState=PENDING\b", line))
    starters = re.findall(r"SrunHost:Pid=([^\s:]+):(\d+)", begun)
    short = host.partition(".")[0]
    return any(name.partition(".")[0] == short and int(number) == pid for name, number in starters)


def in_queue(pid: int) -> bool:
    """It tells whether the step of a running `srun` has not begun yet; where Slurm does not answer, it has."""
    try:
        shown = subprocess.run(
            SHOW_STEPS, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=ANSWER_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return shown.returncode == 0 and not has_begun(shown.stdout, socket.gethostname(), pid)


class Queue:
    """It asks whether an `srun` still waits, until it does not; it tells once that it does."""

    def __init__(
        self,
        pid: int,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        ask: Callable[[int], bool] = in_queue,
    ) -> None:
        self._pid, self._tell, self._clock, self._ask = pid, tell, clock, ask
        self._waits, self._told = True, False
        self._next = clock() + SECONDS_BETWEEN

    def waits(self) -> bool:
        """It tells whether the launch may still be in the queue; the first seconds of any launch count as that."""
        if self._waits and self._clock() >= self._next:
            self._waits = self._ask(self._pid)
            self._next = self._clock() + SECONDS_BETWEEN
            if self._waits and not self._told:
                self._told = True
                self._tell("in the queue of Slurm")
        return self._waits
