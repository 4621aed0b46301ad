"""These errors end a run, each with its exit code. Scripts depend on the codes: keep them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data_pipeline.shown import shown

MOST_PROBLEMS_SHOWN = 100
"""A configuration of another framework fits in; a hostfile with a mistake in each of a thousand lines does not."""


class SurefootError(Exception):
    """An error of this kind ends the run with a message for the user and no traceback."""

    exit_code: ClassVar[int]


@dataclass(frozen=True)
class Problem:
    """A problem is one thing that is wrong with a configuration, in the user's own terms."""

    key: str
    """The user's key, such as `model.attention.num_heads`."""
    rule: str
    """What must hold."""
    remedy: str = ""
    """A value that would work, or where the key really lives."""
    value: str = ""
    """The offending value as it would stand in TOML; empty when there is none."""

    def __str__(self) -> str:
        subject = f"{self.key} = {self.value}" if self.value else self.key
        return shown(f"{subject}: {self.rule}" + (f"; {self.remedy}" if self.remedy else ""))


class ConfigurationError(SurefootError):
    """The configuration or the command line cannot work; the error names every problem that was found."""

    exit_code = 2

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems[:MOST_PROBLEMS_SHOWN]]
        if (others := len(self.problems) - len(lines)) > 0:
            lines.append(f"and {others:,} more")
        super().__init__("\n".join([message, *(f"  {line}" for line in lines)]))


class CheckpointError(SurefootError):
    """There is no usable checkpoint where one is needed, or it does not fit this run."""

    exit_code = 4


class Unreadable(CheckpointError):
    """A file of a checkpoint cannot be read now: nothing is known against the checkpoint itself."""


class TrainingDiverged(SurefootError):
    """The run diverged and the budget for recovery is spent."""

    exit_code = 5


class PeerLost(SurefootError):
    """A rank is gone, does not answer, or has no memory left."""

    exit_code = 6


class RanksDisagree(PeerLost):
    """Ranks have decided differently: none of them can be trusted, and nothing is saved."""


class Preempted(SurefootError):
    """A signal asked the run to stop; a checkpoint is sealed and the run can be resumed."""

    exit_code = 75


DATA_EXIT_CODE = 3
"""The exit code of `data_pipeline.errors.DataError`, which lies below this package."""
