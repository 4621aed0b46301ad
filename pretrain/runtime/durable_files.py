"""Files stay right in a crash if they are replaced whole or appended line by line; a digest tells whether they are."""

import hashlib
import os
from io import BufferedReader
from pathlib import Path

_READ_BYTES = 2**23
"""Bytes that are read at once. Between two reads a thread asks for the interpreter, which the run needs as well."""
_TAIL_BYTES = 2**16


def sync_folder(folder: Path) -> None:
    """Force the entries of a folder to disk: files made, renamed or removed in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Replace a file atomically: at any moment, also after a crash, it has its old text or the new one.

    It needs one writer per path. A crash may leave `.NAME.tmp`, which the next write replaces.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def sha256_of(file: BufferedReader) -> str:
    """It returns the SHA-256 of what is left to read of a file."""
    digest = hashlib.sha256()
    while block := file.read(_READ_BYTES):
        digest.update(block)
    return digest.hexdigest()


class LineFile:
    """A file of whole lines, appended and never rewritten, whatever happened to an earlier process or to the disk.

    It needs one writer.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file and cut off a line that was torn by a crash. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._descriptor, self._whole_lines())

    def append(self, line: bytes, *, durable: bool = False) -> None:
        """Add `line`, which has no line break, and with `durable` wait until the disk has it.

        Without, the operating system has it: it survives kill -9, not a power cut.
        Raises OSError, and then leaves nothing of the line.
        """
        size = self._size()
        try:
            _write_all(self._descriptor, line + b"\n")
            if durable:
                os.fsync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def tail(self, size: int) -> bytes:
        """It returns the last bytes of the file, at most `size`."""
        return os.pread(self._descriptor, size, max(0, self._size() - size))

    def close(self) -> None:
        os.close(self._descriptor)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _whole_lines(self) -> int:
        """It counts the bytes up to the end of the last whole line."""
        end = self._size()
        while end:
            start = max(0, end - _TAIL_BYTES)
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
