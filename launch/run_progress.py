"""How far a run has come is read from its folder, whether ranks write there or not."""

from pathlib import Path

from pretrain.checkpoint.lifecycle import candidates
from pretrain.ledger.file import read_ledger
from pretrain.ledger.record import Kind, Record
from pretrain.run_folder import CHECKPOINTS, LEDGER


def sealed_step(run_folder: Path) -> int:
    """It returns the highest step of a sealed checkpoint, which a resumed run can start from; 0 without any."""
    sealed = candidates(run_folder / CHECKPOINTS).sealed
    return max((tag.step for tag in sealed), default=0)


def is_done(run_folder: Path, after: int) -> bool:
    """It tells whether the ledger says that the run is complete, in a record behind the first `after` ones."""
    return any(record.kind is Kind.DONE for record in records(run_folder)[after:])


def is_preempted(run_folder: Path, after: int) -> bool:
    """It tells whether the run was asked to stop and has sealed a checkpoint, by the last record behind the first
    `after` ones."""
    new = records(run_folder)[after:]
    return bool(new) and new[-1].kind is Kind.PREEMPTED


def has_resumed(run_folder: Path, after: int, tag: str) -> bool:
    """It tells whether the run was resumed from this checkpoint, in a record behind the first `after` ones."""
    new = records(run_folder)[after:]
    return any(record.kind is Kind.RESUMED and record.fields["tag"] == tag for record in new)


def records(run_folder: Path) -> tuple[Record, ...]:
    """It reads the ledger, empty where there is none yet, and raises CheckpointError if it was tampered with."""
    try:
        return read_ledger(run_folder / LEDGER)
    except FileNotFoundError:
        return ()
