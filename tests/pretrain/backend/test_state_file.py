"""What torch writes it reads; what did not get through is an error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.disk import fill, records, small_disk

from data_pipeline import files
from pretrain.backend.state_file import PieceWriter, fsync_and_hash, write_state
from pretrain.checkpoint.manifest import FileRecord

STATE = {"weight": torch.randn(3, 2**16), "step": 7, "small": torch.zeros(5, dtype=torch.bfloat16)}


def test_torch_reads_it_and_the_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    write_state(STATE, tmp_path / "x.pt")
    digest = fsync_and_hash(tmp_path / "x.pt")
    read = torch.load(tmp_path / "x.pt", weights_only=True)
    assert read["step"] == 7
    assert torch.equal(read["weight"], STATE["weight"])
    expected = records(tmp_path, ["x.pt"], rank=0)["x.pt"]
    assert FileRecord(size=digest.size, sha256=digest.sha256, rank=0) == expected


def test_a_file_of_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_READ_BYTES", 1000)
    write_state(STATE, tmp_path / "x.pt")
    assert fsync_and_hash(tmp_path / "x.pt").sha256 == records(tmp_path, ["x.pt"], rank=0)["x.pt"].sha256


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a write to a network file system may be interrupted."""
    file = PieceWriter(tmp_path / "x")
    whole = file._file

    class Short:
        def write(self, piece: memoryview) -> int:
            return whole.write(piece[:1000])

    monkeypatch.setattr(file, "_file", Short())
    assert file.write(bytes(2**16 + 1)) == 2**16 + 1
    monkeypatch.setattr(file, "_file", whole)
    file.close()
    assert (tmp_path / "x").stat().st_size == 2**16 + 1


@pytest.mark.parametrize(
    "state", [STATE, {f"{n}": torch.zeros(100) for n in range(3000)}], ids=["large", "many"]
)
def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path, state: dict[str, Any]) -> None:
    with small_disk(tmp_path / "disk", size=2**18) as disk:
        with pytest.raises(OSError, match="No space left"):
            write_state(state, disk / "x.pt")
        (disk / "x.pt").unlink()
        fill(disk)
        with pytest.raises(OSError, match="No space left"):
            write_state({}, disk / "y.pt")


def test_what_cannot_be_pickled_leaves_no_open_file(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        write_state({"f": lambda: None}, tmp_path / "x.pt")
    assert not [
        fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and "x.pt" in str(fd.readlink())
    ]
