"""A folder appears whole or not at all, whatever its name stands for, and nothing of anybody else is touched."""

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.preparing import workspace as module
from data_pipeline.preparing.record import make_once
from data_pipeline.preparing.workspace import LOCK, MOVING, RECORD, TargetExists

REPOSITORY = Path(__file__).parents[3]
NAMES = ["made", RECORD, "train"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and other users need root")


def fill(folder: Path, content: str = "content") -> str:
    (folder / "made").write_text(content)
    (folder / "train").mkdir()
    (folder / "train" / "shard").write_text(content)
    return "result"


def prepare(target: Path, content: str = "content", *, overwrite: bool = True) -> str | None:
    return make_once(target, {"content": content}, lambda folder: fill(folder, content), overwrite=overwrite)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(target: Path) -> str:
    assert names(target) == NAMES
    text = (target / "made").read_text()
    assert (target / "train" / "shard").read_text() == text
    return text


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder that must stay as it is."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious").write_text("mine")
    return folder


def unharmed(victim: Path) -> bool:
    return names(victim) == ["precious"] and (victim / "precious").read_text() == "mine"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


# What stands where the workspace is made is not ours to clear.


def test_a_planted_link_is_not_followed(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".mine.partial").symlink_to(victim)
    with pytest.raises(TargetExists, match=r"\.mine\.partial: is in the way and is a link"):
        prepare(tmp_path / "mine")
    assert unharmed(victim)
    assert names(tmp_path) == [".mine.partial", "victim"]


def test_a_folder_without_our_mark_is_not_cleared(tmp_path: Path, victim: Path) -> None:
    victim.rename(tmp_path / ".mine.partial")
    with pytest.raises(TargetExists, match="did not make"):
        prepare(tmp_path / "mine")
    assert unharmed(tmp_path / ".mine.partial")


def test_a_file_and_a_pipe_in_the_way_are_refused(tmp_path: Path) -> None:
    for make in (Path.touch, os.mkfifo):
        make(tmp_path / ".mine.partial")
        with pytest.raises(TargetExists, match="is a link or a file"):
            prepare(tmp_path / "mine")
        (tmp_path / ".mine.partial").unlink()


@needs_root
def test_a_folder_of_another_user_is_not_cleared(tmp_path: Path) -> None:
    stage = tmp_path / ".mine.partial"
    stage.mkdir()
    (stage / LOCK).touch()
    (stage / "new").mkdir()
    os.chown(stage, 12345, -1)
    with pytest.raises(TargetExists, match=r"belongs to another user \(id 12345\)"):
        prepare(tmp_path / "mine")
    assert names(stage) == ["new", LOCK]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "hard link"])
def test_a_planted_lock_is_refused(kind: str, tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".mine.partial").mkdir()
    lock = tmp_path / ".mine.partial" / LOCK
    {
        "link": lambda: lock.symlink_to(victim / "precious"),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
        "hard link": lambda: lock.hardlink_to(victim / "precious"),
    }[kind]()
    with pytest.raises(DataError):
        prepare(tmp_path / "mine")
    assert unharmed(victim)


def test_links_in_a_workspace_are_removed_and_not_followed(tmp_path: Path, victim: Path) -> None:
    stage = tmp_path / ".mine.partial"
    (stage / "new" / "deep").mkdir(parents=True)
    (stage / LOCK).touch()
    for name in ("new/deep/link", "link", "old"):
        (stage / name).symlink_to(victim)
    (stage / "old").rename(stage / "older")
    assert prepare(tmp_path / "mine") == "result"
    assert unharmed(victim)
    assert names(tmp_path) == ["mine", "victim"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["[]", "other", "link", "pipe", "deep", "out", "..", "."])
def test_a_planted_publication_moves_and_removes_nothing(kind: str, tmp_path: Path, victim: Path) -> None:
    """An archive, or a repository, may bring a workspace that bears our mark."""
    stage = tmp_path / ".victim.partial"
    (stage / "new").mkdir(parents=True)
    (stage / LOCK).touch()
    moving, inode = stage / MOVING, stage.stat().st_ino
    (tmp_path / "thesis").write_text("mine")
    match kind:
        case "link":
            (tmp_path / "elsewhere").write_text(json.dumps({"workspace": inode, "names": []}))
            moving.symlink_to(tmp_path / "elsewhere")
        case "pipe":
            os.mkfifo(moving)
        case "deep":
            moving.write_text("[" * 100_000)
        case "other":
            moving.write_text(json.dumps({"workspace": inode + 1, "names": []}))
        case "[]":
            moving.write_text(kind)
        case _:
            name = "../../thesis" if kind == "out" else kind
            moving.write_text(json.dumps({"workspace": inode, "names": [name]}))
    with pytest.raises(TargetExists, match=r"is in the way and its moving\.json is not of this folder"):
        prepare(victim)
    assert unharmed(victim)
    assert (tmp_path / "thesis").read_text() == "mine"


def test_nobody_else_writes_into_a_workspace(tmp_path: Path) -> None:
    before = os.umask(0o000)
    try:
        with module.workspace(tmp_path / "mine") as space:
            assert stat.S_IMODE(space.stage.stat().st_mode) == 0o700
    finally:
        os.umask(before)


def test_a_name_of_earlier_versions_is_nothing_special(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".mine.replaced").symlink_to(victim)
    prepare(tmp_path / "mine", "one")
    prepare(tmp_path / "mine", "two")
    assert unharmed(victim)
    assert content(tmp_path / "mine") == "two"


def test_a_workspace_that_is_moved_away_meanwhile_is_noticed(tmp_path: Path, victim: Path) -> None:
    def make(folder: Path) -> None:
        folder.parent.rename(tmp_path / "elsewhere")
        (tmp_path / ".mine.partial").symlink_to(victim)

    with pytest.raises(DataError):
        make_once(tmp_path / "mine", {}, make, overwrite=True)
    assert "precious" in names(victim)
    assert not (tmp_path / "mine").exists()


def test_two_at_once_are_told_apart(tmp_path: Path) -> None:
    stage = tmp_path / ".mine.partial"
    stage.mkdir()
    with (stage / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is preparing it"):
            prepare(tmp_path / "mine")
    assert names(stage) == [LOCK]


# The name that the user gives may stand for anything.


def test_a_link_to_an_empty_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "link").symlink_to("big")
    assert prepare(tmp_path / "link") == "result"
    assert os.readlink(tmp_path / "link") == "big"
    assert content(tmp_path / "big") == "content"
    assert prepare(tmp_path / "link") is None
    assert prepare(tmp_path / "link", "other") == "result"
    assert os.readlink(tmp_path / "link") == "big"
    assert content(tmp_path / "big") == "other"
    assert names(tmp_path) == ["big", "link"]


def test_a_link_to_nothing_makes_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("disk/data")
    assert prepare(tmp_path / "link") == "result"
    assert content(tmp_path / "disk" / "data") == "content"


@pytest.mark.parametrize("name", [".", "./", "../here", "../here/.", "made/.."])
def test_the_current_directory_stays_the_current_directory(name: str, here: Path) -> None:
    if name == "made/..":
        (here.parent / "made").mkdir()
        name = "../made/../here"
    before = here.stat().st_ino
    assert prepare(Path(name), "one") == "result"
    assert prepare(Path(name), "two") == "result"
    assert Path().stat().st_ino == here.stat().st_ino == before
    assert content(here) == "two"


def test_an_upper_directory_is_kept_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path / "mine", "one")
    monkeypatch.chdir(tmp_path / "mine" / "train")
    before = (tmp_path / "mine").stat().st_ino
    assert prepare(Path(".."), "two") == "result"
    assert (tmp_path / "mine").stat().st_ino == before
    assert content(tmp_path / "mine") == "two"


def test_a_trailing_slash_changes_nothing(tmp_path: Path) -> None:
    assert make_once(f"{tmp_path}/mine/", {}, fill, overwrite=False) == "result"  # type: ignore[arg-type]
    assert content(tmp_path / "mine") == "content"


def never(folder: Path) -> None:
    pytest.fail("it is refused before the work")


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_cannot_be_replaced_is_refused_before_the_work(
    overwrite: bool, tmp_path: Path, victim: Path
) -> None:
    (tmp_path / "file").write_text("a user's")
    (tmp_path / "to the file").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (victim / "data").mkdir()
    for path in (
        "/",
        tmp_path / "file",
        tmp_path / "to the file",
        tmp_path / "pipe",
        tmp_path / "loop",
        victim,
    ):
        with pytest.raises(TargetExists, match="choose another --out"):
            make_once(Path(path), {}, never, overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "a user's"


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '"made"', "{", "\xff"])
def test_a_record_that_is_none_protects_the_folder(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / RECORD).write_text(text)
    with pytest.raises(TargetExists, match="not a folder that `surefoot prepare` made"):
        make_once(tmp_path / "mine", {}, never, overwrite=True)


def test_what_a_file_system_puts_into_a_mount_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "is_mount", lambda path: True)
        assert prepare(tmp_path / "disk", "one") == "result"
        assert prepare(tmp_path / "disk", "two") == "result"
    assert names(tmp_path / "disk") == sorted(["lost+found", *NAMES])
    assert (tmp_path / "disk" / "made").read_text() == "two"


def in_a_fork(work: Callable[[], object]) -> int:
    """Do something in a copy of this process; returns the exit code, negative for the signal that has ended it."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@needs_root
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_point_is_filled_and_filled_anew(kind: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    for folder in ("mine", "volume"):
        (tmp_path / folder).mkdir()
    source = ["-t", "tmpfs", "none"] if kind == "tmpfs" else ["--bind", str(tmp_path / "volume")]
    program = (
        f"import sys; sys.path[:0] = {[str(REPOSITORY), str(Path(__file__).parent)]}\n"
        "from test_workspace import content, prepare, Path\n"
        f"mine = Path({str(tmp_path / 'mine')!r})\n"
        "assert prepare(mine, 'one') == 'result'\nassert prepare(mine, 'one') is None\n"
        "assert prepare(mine, 'two') == 'result'\nprint(content(mine))"
    )
    script = 'mount "$@" && exec "$0" -c "$PROGRAM"'
    ended = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, sys.executable, *source, str(tmp_path / "mine")],
        env={**os.environ, "PROGRAM": program},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout == "two\n", ended.stderr
    assert names(tmp_path) == ["mine", "volume"]
    if kind == "bind":
        assert content(tmp_path / "volume") == "two"


@needs_root
def test_under_a_parent_that_takes_no_folders() -> None:
    """An empty folder of the user's own is filled; what cannot even begin is refused before the work."""
    home = Path("/tmp") / f"surefoot-test-{os.getpid()}"  # pytest's own folders are closed to other users
    (home / "mine").mkdir(parents=True)
    home.chmod(0o755)
    os.chown(home / "mine", 65534, 65534)

    def work() -> None:
        os.setresuid(65534, 65534, 65534)
        prepare(home / "mine", "one")
        prepare(home / "mine", "two")
        with pytest.raises(DataError, match="Permission denied"):
            make_once(home / "other", {}, never, overwrite=False)

    try:
        assert in_a_fork(work) == 0
        assert content(home / "mine") == "two"
        assert names(home) == ["mine"]
    finally:
        shutil.rmtree(home)


# A kill at any moment leaves the old or the new, and the next call puts the rest right.

CHANGES = [
    (os, "rename"),
    (os, "unlink"),
    (os, "mkdir"),
    (os, "rmdir"),
    (module, "exchange"),
    (module, "_delete"),
]
"""Calls that change a folder."""


def killed_before(number: int, target: Path, how: str) -> bool:
    """Prepare in a process that is killed before the n-th change to a folder; whether it came to that."""
    calls: list[str] = []

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def inner(*arguments: object, **options: object) -> object:
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.append(str(call))
            return call(*arguments, **options)

        return inner

    def work() -> None:
        if how == "no exchange":
            module.exchange = lambda new, old: False
        if how == "current directory":
            os.chdir(target)
        for owner, name in CHANGES:
            setattr(owner, name, counted(getattr(owner, name)))
        prepare(target, "new")

    code = in_a_fork(work)
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.parametrize("how", ["beside", "no exchange", "mount", "current directory"])
@pytest.mark.parametrize("before", ["nothing", "old"])
def test_killed_before_any_change(
    how: str, before: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "mine"
    if how == "mount":
        monkeypatch.setattr(module, "is_mount", lambda path: True)
    number = -1
    while True:
        number += 1
        shutil.rmtree(target, ignore_errors=True)
        if before == "old":
            prepare(target, "old")
        elif how in ("mount", "current directory"):
            target.mkdir()
        if not killed_before(number, target, how):
            break
        if how == "beside":
            assert (
                names(target) == NAMES if before == "old" else (not target.exists() or names(target) == NAMES)
            )
        if (target / RECORD).exists():
            content_ = (target / "made").read_text()
            assert content_ in ("old", "new")
            assert (target / "train" / "shard").read_text() == content_
        prepare(target, "new")
        assert content(target) == "new"
        assert names(tmp_path) == ["mine"], number
    assert number >= 4
    assert content(target) == "new"


def test_interrupted_while_it_moves_in_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    monkeypatch.chdir(target)
    rename: Callable[..., Path] = Path.rename

    def interrupted(self: Path, other: Path) -> Path:
        if self.name == "train":
            raise KeyboardInterrupt
        return rename(self, other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(target)
    assert make_once(target, {"content": "content"}, never, overwrite=False) is None
    assert content(target) == "content"
    assert names(tmp_path) == ["mine"]


def test_the_umask_decides(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        prepare(tmp_path / "mine")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o775
    assert stat.S_IMODE((tmp_path / "mine" / RECORD).stat().st_mode) == 0o664


@needs_root
def test_a_colleague_of_the_group_replaces_what_one_has_made() -> None:
    """A folder of the group, umask 002; what is left of a killed colleague's work is not theirs to clear."""
    home = Path("/tmp") / f"surefoot-group-{os.getpid()}"  # pytest's own folders are closed to other users
    home.mkdir()
    os.chown(home, 0, 4242)
    home.chmod(0o2775)

    def as_user(user: int, content: str) -> int:
        def work() -> None:
            os.umask(0o002)
            os.setgroups([])
            os.setresgid(4242, 4242, 4242)
            os.setresuid(user, user, user)
            prepare(home / "mine", content)

        return in_a_fork(work)

    try:
        assert as_user(4001, "one") == as_user(4002, "two") == 0
        assert content(home / "mine") == "two"
        assert names(home) == ["mine"]
        (home / ".mine.partial").mkdir()
        os.chown(home / ".mine.partial", 4001, 4242)
        assert as_user(4002, "three") == 1
        assert content(home / "mine") == "two"
    finally:
        shutil.rmtree(home)


@needs_root
@pytest.mark.parametrize(
    ("mode", "inner", "replaced"),
    [
        (0o755, 0o775, False),  # umask 022 in a folder of the group
        (0o775, 0o755, False),
        (0o1775, 0o775, False),
        (0o775, 0o775, True),
    ],
)
@pytest.mark.parametrize("parent", [0o2775, 0o3775])
def test_what_may_not_be_replaced_is_refused_before_the_work(
    parent: int, mode: int, inner: int, replaced: bool
) -> None:
    """Beside it and, where its folder is sticky, entry by entry; what is right already is nobody's fault."""
    home = Path("/tmp") / f"surefoot-rights-{os.getpid()}"  # pytest's own folders are closed to other users
    home.mkdir()
    os.chown(home, 4001, 4242)
    home.chmod(parent)
    target = home / "mine"

    def work() -> None:
        os.setgroups([])
        os.setresgid(4242, 4242, 4242)
        os.setresuid(4002, 4002, 4002)
        assert prepare(target, "one") is None
        if replaced:
            assert prepare(target, "two") == "result"
        else:
            with pytest.raises(TargetExists, match="belongs to user 4001, and this one may not replace"):
                make_once(target, {"content": "two"}, never, overwrite=True)

    try:
        prepare(target, "one")
        for folder in (home, *filter(Path.is_dir, target.rglob("*")), target):
            os.chown(folder, 4001, 4242)
        for file in filter(Path.is_file, target.rglob("*")):
            os.chown(file, 4001, 4242)
        for folder in filter(Path.is_dir, target.rglob("*")):
            folder.chmod(inner)
        target.chmod(mode)
        home.chmod(parent)
        assert in_a_fork(work) == 0
        assert content(target) == ("two" if replaced else "one")
        assert names(home) == ["mine"]
    finally:
        shutil.rmtree(home)
