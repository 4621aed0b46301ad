"""A workspace is where a folder is made that appears complete or not at all, under whatever name the user gave it.

    DIR's parent/.NAME.partial/         beside DIR, or in it where DIR is a mount point or its parent takes no folders
        surefoot-prepare.lock           held while a process is at work, and the mark that the folder is ours
        new/                            what is being made
        old/                            what stood at DIR, for a moment
        moving.json                     names in new/, while they move into DIR one by one, and our inode

Beside DIR the new folder takes its name in one call. A DIR that cannot be renamed (a mount point, the current
directory) is filled entry by entry. Whatever a killed process has begun, the next one finishes or takes back.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.files import exchange, is_mount, may_be_renamed, open_own, open_regular, replace_file
from data_pipeline.parsing import parse_json
from data_pipeline.shards.storage import data_errors

RECORD = "prepare.json"
"""What the folder was made with and from; a folder that has it is complete."""

LOCK = "surefoot-prepare.lock"
NEW, OLD, MOVING = "new", "old", "moving.json"
NEVER_OURS = "lost+found"
"""A folder that the file system puts where it is mounted."""
CANNOT_BE_RENAMED = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM)


class TargetExists(Exception):
    """The output folder is there and is not what was asked for, or something stands in the way of making it."""


@contextmanager
def workspace(target: Path) -> Iterator["Workspace"]:
    """It gives a workspace for `target`, an absolute path without links, and removes it at the end.

    What a killed process left there is finished or cleared first.

    Raises:
        DataError: another process is at work, or the file system refuses.
        TargetExists: something else stands in the way.
    """
    stage = stage_of(target)
    with data_errors(stage):
        stage.parent.mkdir(parents=True, exist_ok=True)
        descriptor, lock = _take(stage, target)
        try:
            space = Workspace(target, stage, descriptor)
            space.finish()
            space.clear()
            yield space
        finally:
            if not os.path.lexists(stage / MOVING):
                _remove(stage, descriptor)
            os.close(lock)
            os.close(descriptor)


@dataclass(frozen=True)
class Workspace:
    """It is a workspace that this process holds."""

    target: Path
    stage: Path
    descriptor: int
    """Of `stage`."""

    def new(self) -> Path:
        """It makes the empty folder that is to be filled."""
        os.mkdir(NEW, dir_fd=self.descriptor)
        return self.stage / NEW

    def publish(self) -> None:
        """It puts the new folder in the place of `target`; what was there goes only when the new is complete."""
        new = self.stage / NEW
        if not _is(self.stage, self.descriptor):
            raise DataError(f"{self.stage}: was moved or replaced while this was at work")
        if not os.path.lexists(self.target):
            new.rename(self.target)
        elif not self._replace(new):
            names = sorted(os.listdir(new), key=lambda name: name == RECORD)  # the record is last
            replace_file(self.stage / MOVING, json.dumps({"workspace": self._inode(), "names": names}))
            self._move(names)

    def finish(self) -> None:
        """It finishes, or takes back, the publication that a process was killed in."""
        if os.path.lexists(self.stage / MOVING):
            self._move(self._moving())
        elif not os.path.lexists(self.target) and os.path.lexists(self.stage / OLD):
            (self.stage / OLD).rename(self.target)

    def clear(self) -> None:
        """It removes everything but the lock."""
        for name in os.listdir(self.descriptor):
            if name != LOCK:
                _delete(name, self.descriptor)

    def _replace(self, new: Path) -> bool:
        """It returns False, and has changed nothing, where `target` cannot be renamed."""
        if self.stage.parent == self.target or _is_in_use(self.target):
            return False
        try:
            if not exchange(new, self.target):
                self.target.rename(self.stage / OLD)
                new.rename(self.target)
        except OSError as error:
            if error.errno not in CANNOT_BE_RENAMED or not self.target.exists():
                raise
            return False
        return True

    def _inode(self) -> int:
        return os.fstat(self.descriptor).st_ino

    def _moving(self) -> list[str]:
        """It returns the names that a killed process was moving.

        What came in an archive or a repository, to have a folder of somebody else emptied, cannot know the inode that
        its own folder gets. Raises TargetExists for that.
        """
        with suppress(OSError, ValueError), open_regular(self.stage / MOVING) as file:
            match parse_json(file.read()):
                case {"workspace": inode, "names": [*names]} if inode == self._inode():
                    if all(_is_name(name) for name in names):
                        return names
        raise _in_the_way(self.stage, f"its {MOVING} is not of this folder")

    def _move(self, names: list[str]) -> None:
        """It makes `target` hold the new entries and no others; after a crash it goes on where it was."""
        left = [name for name in names if os.path.lexists(self.stage / NEW / name)]
        keep = {*names} - {*left} | {self.stage.name, NEVER_OURS}
        folder = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            # The old record goes first: a folder that has one is complete.
            for name in sorted({*os.listdir(folder)} - keep, key=lambda name: name != RECORD):
                _delete(name, folder)
        finally:
            os.close(folder)
        for name in left:
            (self.stage / NEW / name).rename(self.target / name)
        (self.stage / MOVING).unlink()


def stage_of(target: Path) -> Path:
    """It returns where the workspace of `target` lies."""
    name = f".{target.name}.partial"
    inside = target / name
    if not target.is_dir():
        return target.parent / name
    must = is_mount(target) or not os.access(target.parent, os.W_OK | os.X_OK)
    return inside if must or os.path.lexists(inside) else target.parent / name


def check_replaceable(target: Path) -> None:
    """It raises TargetExists where this process may not remove all that is in `target`, or put anything into it."""
    for name, folders, files in os.walk(target):
        folder = Path(name)
        folders[:] = [entry for entry in folders if entry != NEVER_OURS]
        is_open = os.access(folder, os.W_OK | os.X_OK)
        if not is_open or not all(may_be_renamed(folder / entry) for entry in (*folders, *files)):
            raise TargetExists(
                f"{folder}: belongs to user {folder.stat().st_uid}, and this one may not replace what is in it; choose "
                "another --out"
            )


def entries(target: Path) -> list[str]:
    """It returns what is in `target`, but for the workspace in it and what the file system puts there."""
    return [name for name in os.listdir(target) if name not in (f".{target.name}.partial", NEVER_OURS)]


def _take(stage: Path, target: Path) -> tuple[int, int]:
    """It makes or takes over a workspace, and returns the descriptors of the folder and of its lock."""
    while True:
        with suppress(FileExistsError):
            stage.mkdir(mode=0o700)  # what is in it decides what is moved and removed
        descriptor = _open_folder(stage)
        try:
            _check_ours(stage, descriptor)
            lock = open_own(LOCK, folder=descriptor)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                if isinstance(error, BlockingIOError):
                    raise DataError(f"{target}: another process is preparing it") from error
                raise
        except BaseException:
            os.close(descriptor)
            raise
        if _is(stage, descriptor) and os.fstat(lock).st_nlink:
            return descriptor, lock
        os.close(lock)  # its last holder has just removed it
        os.close(descriptor)


def _open_folder(stage: Path) -> int:
    try:
        return os.open(stage, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR):
            raise
        raise _in_the_way(stage, "is a link or a file") from error


def _check_ours(stage: Path, descriptor: int) -> None:
    """It refuses a folder that another user made, or that holds anything without our mark."""
    owner = os.fstat(descriptor).st_uid
    if owner != os.geteuid():
        raise _in_the_way(stage, f"belongs to another user (id {owner})")
    found = os.listdir(descriptor)
    if found and LOCK not in found:
        raise _in_the_way(stage, "holds files that `surefoot prepare` did not make")


def _in_the_way(stage: Path, what: str) -> TargetExists:
    return TargetExists(f"{stage}: is in the way and {what}; move it away, or choose another --out")


def _is(path: Path, descriptor: int) -> bool:
    """It tells whether `path` still names the folder of a descriptor."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not {*name} & {"/", "\0"}


def _is_in_use(target: Path) -> bool:
    """It tells whether the current directory is `target` or lies in it: who stands there must not lose it."""
    return Path.cwd().is_relative_to(target)


def _delete(name: str, folder: int) -> None:
    """It removes an entry of a folder, and follows no link."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        shutil.rmtree(name, dir_fd=folder)


def _remove(stage: Path, descriptor: int) -> None:
    """It removes a workspace, its lock last. What cannot be removed stays, for the next process to try."""
    with suppress(OSError):
        for name in sorted(os.listdir(descriptor), key=lambda name: name == LOCK):
            _delete(name, descriptor)
        if _is(stage, descriptor):
            stage.rmdir()
