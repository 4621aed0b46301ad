"""The end of the launcher says what became of the run; this module reads it."""

import signal
from dataclasses import dataclass
from pathlib import Path

from launch.metrics import last_rows
from pretrain.errors import PeerLost, Preempted

FIRST = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
IF_HEEDED = (
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGXCPU,
    signal.SIGPOLL,
    signal.SIGPWR,
    signal.SIGSTKFLT,
)
"""These are not heeded where they are ignored, as SIGHUP is under nohup."""
REQUESTS = (*FIRST, *IF_HEEDED)
"""These signals ask for the end: all that end a process and can be caught, but for SIGUSR2 and those that tell of a
fault of its own."""
REVOKED = 1
"""`srun` returns this code when it is ended while its job waits in the queue."""


@dataclass(frozen=True)
class Ending:
    """An ending says how a launch ended."""

    code: int
    """DeepSpeed's launcher returned this code."""
    stopping: bool
    """It is true where a signal had asked the ranks to stop."""
    orphans: int
    """So many processes of ranks were still running when the launcher had ended."""
    unbegun: bool = False
    """It is true where the launcher returned `REVOKED`, and ranks have left no sign that they had begun."""

    @property
    def signal_number(self) -> int:
        """It returns the signal that ended a rank or the launcher, or 0 for none.

        A rank's -9 comes back as 247 from the launcher, a remote shell makes 137 of it.
        """
        if self.code < 0:
            return -self.code
        if self.code > 192:
            return 256 - self.code
        return max(self.code - 128, 0)


@dataclass(frozen=True)
class Outcome:
    """An outcome is the exit code of the run and, where it is not the ranks' own, the reason."""

    exit_code: int
    reason: str = ""
    before_training: bool = False
    """It is true where ranks seem to have been ended by the request to stop, which they heed once they train."""


def outcome_of(ending: Ending, last_step: int | None, steps: int) -> Outcome:
    """It returns the documented exit code of a run of `steps` steps whose metrics end with `last_step`.

    DeepSpeed's launcher returns the code of the first rank that failed, but 0 when a signal ends itself.
    A rank that was ended while it was asked to stop had not begun to train: the run can be resumed.
    """
    number = ending.signal_number
    if ending.stopping and (number in REQUESTS or ending.unbegun):
        return Outcome(Preempted.exit_code, "stopped before training began", before_training=True)
    if number:
        return Outcome(PeerLost.exit_code, f"a rank or its launcher was ended by {name(number)}")
    if ending.orphans:
        return Outcome(
            PeerLost.exit_code, f"the launcher was killed; {ending.orphans} processes that it left were ended"
        )
    if ending.code == 0 and last_step is not None and last_step < steps:
        return Outcome(
            PeerLost.exit_code, f"the launcher ended early: step {last_step} of {steps} is the last"
        )
    return Outcome(ending.code)


def name(signal_number: int) -> str:
    """It names a signal."""
    known = {number.value: number.name for number in signal.Signals}
    return known.get(signal_number, f"signal {signal_number}")


def last_step(metrics: Path) -> int | None:
    """It returns the last optimizer step in a `metrics.jsonl`, or None where there is no such file here."""
    rows = last_rows(metrics)
    return None if rows is None else max((row["step"] for row in rows), default=0)
