"""Errors that end a run, each with its exit code. Scripts depend on the codes: keep them."""

from typing import ClassVar


class SurefootError(Exception):
    """An error with a message for the user and no traceback."""

    exit_code: ClassVar[int]


class ConfigurationError(SurefootError):
    """The configuration or the command line cannot work."""

    exit_code = 2


class CheckpointError(SurefootError):
    """No usable checkpoint where one is needed, or one that does not fit this run."""

    exit_code = 4


class TrainingDiverged(SurefootError):
    """The run diverged and the budget for recovery is spent."""

    exit_code = 5


class PeerLost(SurefootError):
    """Another rank is gone or does not answer."""

    exit_code = 6


class Preempted(SurefootError):
    """A signal asked the run to stop; a checkpoint is sealed and the run can be resumed."""

    exit_code = 75


DATA_EXIT_CODE = 3
"""`data_pipeline.errors.DataError`, which lies below this package."""
