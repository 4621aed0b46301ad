"""A file of lines stays right in a crash: it is appended line by line, and never rewritten."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from data_pipeline.files import lines_backwards, open_own, temporary_name, write_all

_BLOCK_BYTES = 2**16


class LineFile:
    """A file of whole lines, appended and never rewritten, whatever happened to an earlier process or to the disk.

    It needs one writer. It knows its folder by a descriptor, so a folder that is renamed meanwhile takes it along.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file and cut off a line that was torn by a crash. Raises OSError."""
        self._path, self._name = str(path), path.name
        self._descriptor = open_own(path)
        try:
            self._folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            os.close(self._descriptor)
            raise
        self._size = self._cut_torn()

    def append(self, line: bytes, *, durable: bool = False) -> None:
        """Add `line`, which has no line break, and with `durable` wait until the disk has it.

        Without, the operating system has it: it survives kill -9, not a power cut.
        Raises OSError, and then leaves nothing of the line.
        """
        size = os.fstat(self._descriptor).st_size
        try:
            write_all(self._descriptor, line + b"\n")
            if durable:
                os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            error.filename = self._path  # a descriptor does not tell
            raise
        self._size = size + len(line) + 1

    def loss(self) -> str:
        """It returns what somebody else has done to the file since the last line; empty if nothing. Raises OSError."""
        own = os.fstat(self._descriptor)
        try:
            there = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return "was removed"
        if not os.path.samestat(own, there):
            return "was replaced"
        if own.st_size == self._size:
            return ""
        return "was cut" if own.st_size < self._size else "was added to"

    def begin_anew(self, lines: Iterable[bytes]) -> None:
        """Put a new file with these lines in the place of whatever stands there now. Raises OSError."""
        temporary = temporary_name(self._name)
        descriptor = open_own(temporary, folder=self._folder)
        try:
            write_all(descriptor, b"".join(line + b"\n" for line in lines))
            os.fsync(descriptor)
            os.rename(temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError as error:
            os.close(descriptor)
            with suppress(OSError):
                os.unlink(temporary, dir_fd=self._folder)
            error.filename = self._path
            raise
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._size = os.fstat(descriptor).st_size

    def backwards(self) -> Iterator[bytes]:
        """It yields all lines, the last one first. Raises OSError."""
        with open(self._descriptor, "rb", closefd=False) as file:
            yield from lines_backwards(file)

    def close(self) -> None:
        os.close(self._descriptor)
        os.close(self._folder)

    def _cut_torn(self) -> int:
        """It cuts off what follows the last line break, and returns the size that is left."""
        end = os.fstat(self._descriptor).st_size
        while end:
            start = max(0, end - _BLOCK_BYTES)
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            end = start + newline + 1
            if newline >= 0:
                break
        os.ftruncate(self._descriptor, end)
        return end
