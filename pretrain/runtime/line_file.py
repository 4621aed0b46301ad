"""A file of lines stays right in a crash: it is appended line by line, and never rewritten."""

import os
from pathlib import Path

from data_pipeline.files import open_own, write_all

_TAIL_BYTES = 2**16


class LineFile:
    """A file of whole lines, appended and never rewritten, whatever happened to an earlier process or to the disk.

    It needs one writer.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file and cut off a line that was torn by a crash. Raises OSError."""
        self._descriptor = open_own(path)
        os.ftruncate(self._descriptor, self._whole_lines())

    def append(self, line: bytes, *, durable: bool = False) -> None:
        """Add `line`, which has no line break, and with `durable` wait until the disk has it.

        Without, the operating system has it: it survives kill -9, not a power cut.
        Raises OSError, and then leaves nothing of the line.
        """
        size = self._size()
        try:
            write_all(self._descriptor, line + b"\n")
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
