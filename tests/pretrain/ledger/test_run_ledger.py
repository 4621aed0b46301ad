"""What the disk has no room for is written later, before anything else."""

from contextlib import ExitStack
from pathlib import Path

from support.disk import fill, small_disk
from support.distributed import run_distributed
from support.training import make_mesh

from parallel.config import ParallelConfig
from pretrain.errors import CheckpointError
from pretrain.ledger.file import read_ledger
from pretrain.ledger.history import RunHistory, fold
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, Record
from pretrain.run_folder import LEDGER


def veto(attempt: int) -> Record:
    fields = {"reason": "y" * 5000, "draws": [0, 1]}
    return Record(Kind.VETO, step=attempt, attempt=attempt, lineage=1, fields=fields)


def told_on_a_full_disk(folder: Path) -> tuple[RunHistory, str]:
    """Two records told and one to be committed while there is no room; a fourth once there is."""
    with ExitStack() as stack:
        ledger = RunLedger.open(folder, make_mesh(ParallelConfig()), stack, lambda record: None)
        ballast = fill(folder) if ledger.file else None
        for attempt in (1, 2):
            ledger.append(veto(attempt))
        refusal = ""
        try:
            ledger.append_before(veto(3))
        except CheckpointError as error:
            refusal = str(error)
        if ballast:
            ballast.unlink()
        ledger.append(veto(4))
        return ledger.history, refusal


def test_what_was_told_on_a_full_disk_is_not_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size=64 * 1024) as disk:
        answers = run_distributed(told_on_a_full_disk, 2, disk)
        written = read_ledger(disk / LEDGER)
    assert [record.attempt for record in written] == [1, 2, 4]
    for history, refusal in answers:
        assert history == fold(written)
        assert "No space left" in refusal
