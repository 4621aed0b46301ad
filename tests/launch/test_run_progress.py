"""A supervisor reads from a run folder, between two launches, how far the run has come."""

from pathlib import Path

import pytest

from launch.outcome import Ending, outcome_of
from launch.process import believed
from launch.run_progress import has_resumed, is_done, records, sealed_step
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.record import Kind, Record
from pretrain.run_folder import LEDGER


def append_record(folder: Path, kind: Kind, **fields: object) -> None:
    """It appends a record to the ledger in `folder`."""
    ledger = LedgerFile(folder / LEDGER)
    ledger.append(Record(kind, step=1, attempt=1, lineage=1, fields=fields))
    ledger.close()


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    assert (records(tmp_path), sealed_step(tmp_path)) == ((), 0)


def test_only_new_records_count(tmp_path: Path) -> None:
    append_record(tmp_path, Kind.RESUMED, tag="step00000004-a1")
    append_record(tmp_path, Kind.DONE)
    assert is_done(tmp_path, 1)
    assert not is_done(tmp_path, 2)
    assert has_resumed(tmp_path, 0, "step00000004-a1")
    assert not has_resumed(tmp_path, 0, "step00000008-a2")
    assert not has_resumed(tmp_path, 1, "step00000004-a1")


@pytest.mark.parametrize(
    ("code", "stopping", "orphans", "last", "expected"),
    [
        (-15, True, 2, Kind.PREEMPTED, 75),  # every process was signalled
        (1, True, 0, Kind.PREEMPTED, 75),
        (
            1,
            False,
            0,
            Kind.PREEMPTED,
            75,
        ),  # DeepSpeed's launcher alone was: it passes that on, and exits with 1
        (-9, True, 0, Kind.PREEMPTED, 75),  # the second Ctrl-C, when all was done
        (-9, False, 2, Kind.PREEMPTED, 6),  # the launcher was killed; only then the ranks were asked to stop
        (-15, True, 2, Kind.RESUMED, 6),  # they did not get as far as a checkpoint
        (-9, True, 0, Kind.RESUMED, 6),
        (1, True, 0, Kind.RESUMED, 1),
        (0, True, 0, Kind.DONE, 0),
        (0, False, 0, Kind.PREEMPTED, 6),
    ],
)
def test_the_ledger_is_believed(
    tmp_path: Path, code: int, stopping: bool, orphans: int, last: Kind, expected: int
) -> None:
    append_record(tmp_path, Kind.PREEMPTED)
    append_record(tmp_path, last, tag="step00000004-a1")
    ending = Ending(code, stopping, orphans)
    assert believed(outcome_of(ending, 1, 1), ending, tmp_path, 1).exit_code == expected


def test_ranks_that_had_not_begun_are_stopped_well(tmp_path: Path) -> None:
    append_record(tmp_path, Kind.PREEMPTED)
    ending = Ending(-15, stopping=True, orphans=2)
    outcome = believed(outcome_of(ending, 1, 1), ending, tmp_path, 1)
    assert (outcome.exit_code, outcome.reason) == (75, "stopped before training began")
