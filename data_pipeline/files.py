"""Files are opened, made and replaced here, and nowhere else.

No link leads a writer astray, no pipe holds up a reader, the umask decides who may use what is made, and at any moment,
also after a crash, a file has its old content or the new one.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO

_READ_BYTES = 2**23
"""Bytes that are read at once. Between two reads a thread asks for the interpreter, which a run needs as well."""
_BLOCK_BYTES = 2**16
_MODE = 0o666
"""Less what the umask takes away."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
_NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def open_regular(path: Path, *, follow: bool = False) -> BufferedReader:
    """Open a file for reading, but no pipe or device, which might block, and no link unless `follow`.

    Raises OSError, also for what is no regular file.
    """
    descriptor = _open(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW))
    return os.fdopen(descriptor, "rb")


def open_own(path: Path | str, *, folder: int | None = None) -> int:
    """Open a file that only we write, to read and append, or make it; it returns the descriptor.

    `folder` is the descriptor of a folder that `path` begins in.

    Raises OSError, also for a link, for a file with a second name, whose content is another's as well, and for what is
    no regular file.
    """
    descriptor = _open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, folder)
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EMLINK, "has a second name (hard link); copy it to a file of its own", str(path))
    return descriptor


def identity_of(state: os.stat_result) -> tuple[int, int, int, int]:
    """It returns what is another where a file has been replaced or written to: device, inode, size, time of change."""
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def create_file(path: Path) -> FileIO:
    """Make a file that is not there yet, for writing without a buffer. Raises OSError, FileExistsError above all."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return FileIO(os.open(path, flags, _MODE), "wb")


def replace_file(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Give a file new content, in one piece; a link is replaced, never followed.

    With `durable` it waits until the disk has it. A killed process may leave a temporary, see `remove_temporaries`.
    Raises OSError, and then leaves the file as it was.
    """
    temporary = path.with_name(temporary_name(path.name))
    file = create_file(temporary)
    try:
        with file:
            write_all(file.fileno(), content.encode() if isinstance(content, str) else content)
            if durable:
                os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # which a descriptor does not tell
        raise
    if durable:
        sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Within it, a folder under a random name beside `path` is filled; at its end that is called `path`, complete and
    on disk. Where the block fails it is removed; what a killed process has left, the next call for `path` removes.

    Raises OSError; FileExistsError unless `path` is not there yet or is an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    there = FileExistsError(errno.EEXIST, "is there already, and is no empty folder", str(path))
    if os.path.lexists(path) and (path.is_symlink() or not path.is_dir() or any(path.iterdir())):
        raise there
    if os.path.lexists(path) and not may_be_renamed(path):
        raise PermissionError(
            errno.EPERM,
            "cannot be replaced: the folder that it is in does not let this user do so",
            str(path),
        )
    _remove_abandoned(path)
    temporary = path.with_name(temporary_name(path.name))
    unlocked = path.with_name(temporary_name(f"{path.name}.unlocked"))  # which nobody takes for abandoned
    unlocked.mkdir()
    lock = os.open(unlocked, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # a file system without locks: what is left then stays
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(temporary)
        yield temporary
        for parent, _, names in os.walk(temporary):
            for name in names:
                with open_regular(Path(parent, name)) as file:
                    os.fsync(file.fileno())
            sync_folder(Path(parent))
        try:
            temporary.rename(path)
        except OSError as error:  # another process was faster
            raise there if error.errno in _TAKEN else error from None
    except BaseException:
        with suppress(OSError):
            remove(temporary)
        raise
    finally:
        os.close(lock)
    sync_folder(path.parent)


def _remove_abandoned(path: Path) -> None:
    """Remove folders that were to become `path`, and that no process fills any more: it would hold their lock."""
    for entry in os.scandir(path.parent):
        name = entry.name
        random = name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if name != f".{path.name}.{random}.tmp" or not re.fullmatch("[0-9a-f]{16}", random):
            continue
        with suppress(OSError):
            lock = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(Path(entry.path))
            finally:
                os.close(lock)


def may_be_renamed(path: Path) -> bool:
    """It tells whether this process may rename or remove `path`, by the rights of the folder that it is in.

    A sticky folder, such as /tmp, may be open to all, and lets them do so with what is their own alone.
    """
    folder, user = path.parent.stat(), os.geteuid()
    is_open = not folder.st_mode & stat.S_ISVTX or user in (0, folder.st_uid, path.lstat().st_uid)
    return is_open and os.access(path.parent, os.W_OK | os.X_OK)


def is_mount(path: Path) -> bool:
    """It tells whether something is mounted at `path`, also another folder of the same file system."""
    return os.path.ismount(path) or _mount_id(path) != _mount_id(path.parent)


def _mount_id(path: Path) -> str:
    """It returns the number of the mount that `path` lies on; nothing where the system does not say."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return next((line for line in lines if line.startswith("mnt_id:")), "")


def copy_file(old: BufferedReader, path: Path) -> None:
    """Write what is left to read of an open file to a new one. Raises OSError."""
    with create_file(path) as new:
        while block := old.read(_READ_BYTES):
            write_all(new.fileno(), block)  # a disk that is nearly full takes a part, and says nothing


def temporary_name(name: str) -> str:
    """It returns a name, which nobody can foresee, for what is to be called `name` once it is complete."""
    return f".{name}.{secrets.token_hex(8)}.tmp"


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes have left under a temporary name in a folder; no other process may write there now.

    Raises OSError.
    """
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if _TEMPORARY.fullmatch(entry.name):
                remove(Path(entry.path))


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; no link is followed. Raises OSError."""
    try:
        path.unlink()
    except IsADirectoryError:
        shutil.rmtree(path)


def exchange(new: Path, old: Path) -> bool:
    """Give two files or folders of one file system each other's name, in one call.

    It returns False, and has done nothing, where the system or the file system has no such call. Raises OSError.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(new), None, str(old))


def sync_folder(folder: Path) -> None:
    """Force the entries of a folder to disk: files made, renamed or removed in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lines_backwards(file: BinaryIO) -> Iterator[bytes]:
    """It yields the whole lines of a file, the last one first; what follows the last line break was torn.

    Raises OSError.
    """
    parts: list[bytes] | None = (
        None  # of a line that begins further in front; none before the last line break
    )
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        first, *rest = file.read(end - start).split(b"\n")
        end = start
        for piece in reversed(rest):
            if parts is not None:
                yield b"".join([piece, *reversed(parts)])
            parts = []
        if parts is not None:
            parts.append(first)
    if parts is not None:
        yield b"".join(reversed(parts))


def last_lines(path: Path, size: int) -> list[bytes]:
    """It returns whole lines from the end of a file, in their order: of `size` bytes at most, but one at least.

    Raises OSError.
    """
    found: list[bytes] = []
    with open_regular(path) as file:
        for line in lines_backwards(file):
            size -= len(line) + 1
            if found and size < 0:
                break
            found.append(line)
    return found[::-1]


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`, however much the system takes at once. Raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def sha256_of(file: BufferedReader) -> str:
    """It returns the SHA-256 of what is left to read of a file."""
    digest = hashlib.sha256()
    while block := file.read(_READ_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _open(path: Path | str, flags: int, folder: int | None = None) -> int:
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, _MODE, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise OSError(errno.ELOOP, "is a symbolic link, and none is followed here", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return descriptor
