"""A supervisor reads from a run folder, between two launches, how far the run has come."""

from pathlib import Path

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
