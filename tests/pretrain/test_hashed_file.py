"""What is hashed is what was handed over; what did not get through is an error, or is found by whoever reads."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from disk import fill, records, small_disk
from hypothesis import given
from hypothesis import strategies as st

from pretrain.hashed_file import SMALL, HashedFile, save_hashed
from pretrain.manifest import FileRecord

STATE = {"weight": torch.randn(3, SMALL), "step": 7, "small": torch.zeros(5, dtype=torch.bfloat16)}


def test_torch_reads_it_and_the_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    digest = save_hashed(STATE, tmp_path / "x.pt")
    read = torch.load(tmp_path / "x.pt", weights_only=True)
    assert read["step"] == 7
    assert torch.equal(read["weight"], STATE["weight"])
    expected = records(tmp_path, ["x.pt"], rank=0)["x.pt"]
    assert FileRecord(size=digest.size, sha256=digest.sha256, rank=0) == expected


@given(sizes=st.lists(st.sampled_from([0, 1, 100, SMALL, SMALL + 1, 3 * SMALL]), max_size=6))
def test_pieces_of_any_size(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    path = tmp_path_factory.mktemp("pieces") / "x"
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    file = HashedFile(path)
    for piece in pieces:
        assert file.write(piece) == len(piece)
    digest = file.close()
    assert path.read_bytes() == b"".join(pieces)
    assert digest.sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()
    assert digest.size == sum(sizes)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a write to a network file system may be interrupted."""
    file = HashedFile(tmp_path / "x")
    whole = file._file

    class Short:
        def write(self, piece: memoryview) -> int:
            return whole.write(piece[:1000])

    monkeypatch.setattr(file, "_file", Short())
    file.write(bytes(SMALL + 1))
    monkeypatch.setattr(file, "_file", whole)
    assert file.close().size == (tmp_path / "x").stat().st_size == SMALL + 1


def test_what_changes_on_the_way_is_not_blessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest taken from the file afterwards would be that of the damage."""
    file = HashedFile(tmp_path / "x.pt")
    write = file._write

    def damaging(piece: memoryview) -> None:
        write(memoryview(bytes([piece[0] ^ 1]) + bytes(piece[1:])) if len(piece) > SMALL else piece)

    monkeypatch.setattr(file, "_write", damaging)
    torch.save(STATE, file)  # type: ignore[arg-type]
    digest = file.close()
    assert records(tmp_path, ["x.pt"], rank=0)["x.pt"].sha256 != digest.sha256


@pytest.mark.parametrize(
    "state", [STATE, {f"{n}": torch.zeros(100) for n in range(3000)}], ids=["large", "many"]
)
def test_a_full_disk_is_an_error_and_no_crash(tmp_path: Path, state: dict[str, Any]) -> None:
    with small_disk(tmp_path / "disk", size=2**18) as disk:
        with pytest.raises(OSError, match="No space left"):
            save_hashed(state, disk / "x.pt")
        (disk / "x.pt").unlink()
        fill(disk)
        with pytest.raises(OSError, match="No space left"):
            save_hashed({}, disk / "y.pt")


def test_what_cannot_be_pickled_leaves_no_open_file(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        save_hashed({"f": lambda: None}, tmp_path / "x.pt")
    assert not [
        fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink() and "x.pt" in str(fd.readlink())
    ]
