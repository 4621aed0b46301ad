"""Files are opened, made and replaced without a link, a pipe, a crash or a second writer doing harm."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from support.disk import fill, small_disk

from data_pipeline import files
from data_pipeline.files import (
    copy_file,
    create_file,
    exchange,
    last_lines,
    lines_backwards,
    new_folder,
    open_own,
    open_regular,
    remove_temporaries,
    replace_file,
    temporary_name,
)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def replace(path: Path) -> None:
    replace_file(path, "new")


def own(path: Path) -> None:
    os.close(open_own(path))


def create(path: Path) -> None:
    create_file(path).close()


def read(path: Path) -> None:
    open_regular(path).close()


@pytest.mark.parametrize("touch", [own, create, read])
def test_a_link_is_refused(touch: Callable[[Path], None], tmp_path: Path, victim: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(victim)
    with pytest.raises(OSError, match=r"link|exists"):
        touch(link)
    link.unlink()
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match=r"link|exists"):
        touch(link)
    assert not (tmp_path / "nowhere").exists()
    assert victim.read_text() == "precious"


def test_a_link_is_followed_where_that_is_asked_for(tmp_path: Path, victim: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(victim)
    with open_regular(link, follow=True) as file:
        assert file.read() == b"precious"


def test_a_second_name_is_refused_for_appending(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "other").hardlink_to(victim)
    with pytest.raises(OSError, match="second name"):
        open_own(tmp_path / "other")


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkfifo, make_folder])
@pytest.mark.parametrize("touch", [own, create, read])
def test_what_is_no_regular_file_is_refused_at_once(
    make: Callable[[Path], None], touch: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "thing")
    with pytest.raises(OSError, match=r"regular|exists|directory"):
        touch(tmp_path / "thing")


@pytest.mark.parametrize("follow", [False, True])
def test_devices_are_refused(follow: bool) -> None:
    with pytest.raises(OSError, match="regular"):
        open_regular(Path("/dev/zero"), follow=follow)


@pytest.mark.parametrize("touch", [own, create, replace])
def test_the_umask_decides(
    touch: Callable[[Path], None], tmp_path: Path, umask: Callable[[int], int]
) -> None:
    for mask, mode in ((0o002, 0o664), (0o077, 0o600), (0o022, 0o644)):
        umask(mask)
        touch(tmp_path / f"{mask}")
        assert permissions(tmp_path / f"{mask}") == mode


def test_replacing_replaces_a_link_and_leaves_what_it_points_to(tmp_path: Path, victim: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(victim)
    replace_file(link, b"new")
    assert link.read_text() == "new"
    assert not link.is_symlink()
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "victim"]


def test_no_planted_temporary_is_written(tmp_path: Path, victim: Path) -> None:
    """Nobody knows the name of the next one, and one that is there is not opened."""
    for name in (".config.toml.tmp", "config.toml.tmp"):
        (tmp_path / name).symlink_to(victim)
    replace_file(tmp_path / "config.toml", "new")
    assert victim.read_text() == "precious"


def test_a_temporary_that_exists_is_not_opened(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0" * 16)
    (tmp_path / f".config.toml.{'0' * 16}.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "config.toml", "new")
    assert victim.read_text() == "precious"


def test_a_failed_replacement_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path / "folder", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def killed(where: str, call: str, folder: Path) -> None:
    """Run a call of `files` in a process that is killed when it comes to `where`."""
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom data_pipeline import files\n"
        f"folder = Path({str(folder)!r})\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{where}\n{call}\n"
    )
    process = subprocess.run([sys.executable, "-c", code], check=False)
    assert process.returncode == -signal.SIGKILL


def test_what_a_killed_writer_leaves_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("old")
    (tmp_path / ".mine.tmp").write_text("a user's")
    killed("Path.rename = die", "files.replace_file(folder / 'note', 'new')", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    remove_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "note"]
    assert (tmp_path / "note").read_text() == "old"
    remove_temporaries(tmp_path / "not there")


@pytest.mark.parametrize("block", [1, 2, 3, 7, 2**16])
@pytest.mark.parametrize(
    "text", [b"", b"a", b"a\n", b"a\nb", b"a\n\nbcd\nef\n", b"\n", b"\n\n", b"x" * 50 + b"\nyy\nz"]
)
def test_lines_come_backwards_and_whole(text: bytes, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BLOCK_BYTES", block)
    assert list(lines_backwards(BytesIO(text))) == text.split(b"\n")[:-1][::-1]


def test_the_last_lines_are_whole_and_one_at_least(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"first\n" + b"x" * 300_000 + b"\nthird\n" + b"torn")
    assert last_lines(path, 100) == [b"third"]
    assert last_lines(path, 2**20) == [b"first", b"x" * 300_000, b"third"]
    path.write_bytes(b"first\n" + b"x" * 300_000 + b"\n")
    assert last_lines(path, 100) == [b"x" * 300_000]
    path.write_bytes(b"torn")
    assert last_lines(path, 100) == []


def two_folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    return tmp_path / "new", tmp_path / "old"


def test_exchange(tmp_path: Path) -> None:
    new, old = two_folders(tmp_path)
    assert exchange(new, old)
    assert (old / "content").read_text() == "new"
    assert (new / "content").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_exchange_with_what_is_not_there(tmp_path: Path) -> None:
    _, old = two_folders(tmp_path)
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "nothing", old)
    assert (old / "content").read_text() == "old"


def test_where_there_is_no_exchange_nothing_happens(tmp_path: Path) -> None:
    """A folder cannot be exchanged with one inside of it: the call says what it says of a foreign file system."""
    _, old = two_folders(tmp_path)
    (old / "inside").mkdir()
    assert not exchange(old / "inside", old)
    assert sorted(path.name for path in old.iterdir()) == ["content", "inside"]


# A folder that is made as a whole


@pytest.mark.skipif(os.geteuid() != 0, reason="other users need root")
def test_an_empty_folder_of_somebody_else_in_a_sticky_one_is_refused_at_once() -> None:
    home = Path("/tmp") / f"surefoot-sticky-{os.getpid()}"  # pytest's own folders are closed to other users
    (home / "out").mkdir(parents=True)
    home.chmod(0o1777)
    os.seteuid(4002)
    try:
        with pytest.raises(PermissionError, match="cannot be replaced"), new_folder(home / "out"):
            pytest.fail("it was to be filled first")
    finally:
        os.seteuid(0)
        shutil.rmtree(home)


def test_a_new_folder_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "other") as folder:
        (folder / "b" / "a").write_text("a")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(FileExistsError), new_folder(tmp_path / "out"):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "link"):
        pass


def made_meanwhile(path: Path) -> None:
    with new_folder(path) as folder:
        (folder / "b").write_text("b")


TAKEN: list[Callable[[Path], object]] = [
    made_meanwhile,
    Path.touch,
    lambda path: path.symlink_to(path.parent),
]


@pytest.mark.parametrize("take", TAKEN, ids=["folder", "file", "link"])
def test_a_name_that_another_process_takes_meanwhile_is_told_as_one_that_was_taken(
    tmp_path: Path, take: Callable[[Path], object]
) -> None:
    with pytest.raises(FileExistsError, match="is there already"), new_folder(tmp_path / "out"):
        take(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_has_left_goes_and_what_a_living_one_fills_stays(tmp_path: Path) -> None:
    left = tmp_path / temporary_name("out")
    (left / "deep").mkdir(parents=True)
    others = [tmp_path / temporary_name("out.b"), tmp_path / ".out.mine.tmp"]
    for other in others:
        other.mkdir()
    (tmp_path / temporary_name("out")).symlink_to(tmp_path)
    with new_folder(tmp_path / "out") as first:
        assert not left.exists()
        assert all(other.exists() for other in others)
        with new_folder(tmp_path / "out") as second:
            assert first.exists()
            assert first != second
        (first / "a").write_text("a")
    assert (tmp_path / "out/a").exists()


def test_a_copy_is_whole_or_fails(tmp_path: Path) -> None:
    """The last write of a copy gets a part of its bytes onto a disk that is nearly full, and does not fail."""
    (tmp_path / "old").write_bytes(os.urandom(100_000))
    with small_disk(tmp_path / "disk", 2**20) as disk:
        with open_regular(tmp_path / "old") as old:
            copy_file(old, disk / "new")
        assert (disk / "new").read_bytes() == (tmp_path / "old").read_bytes()
        (disk / "room").write_bytes(bytes(80_000))
        fill(disk)
        (disk / "room").unlink()
        with open_regular(tmp_path / "old") as old, pytest.raises(OSError, match="No space"):
            copy_file(old, disk / "other")


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2**16) as disk:
        fill(disk)
        with pytest.raises(OSError, match=r"No space left on device: '.*/disk/note'"):
            replace_file(disk / "note", "new")
        assert [path.name for path in disk.iterdir()] == ["ballast"]
