"""torch writes files of state while the run waits; they are forced to disk and described while it goes on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch

from data_pipeline.files import create_file, open_regular, sha256_of


@dataclass(frozen=True)
class Digest:
    """It tells whether a file is still what it was."""

    size: int
    """Bytes."""
    sha256: str


class PieceWriter:
    """It is a new file for `torch.save` that takes pieces whole: by its path torch writes a file in small ones, which
    takes several times as long.

    A failing write is raised by `close`, since between the two lies C++ that would write on.
    """

    def __init__(self, path: Path) -> None:
        """It raises OSError if the file cannot be made."""
        self._file = create_file(path)
        self._failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        piece = memoryview(data).cast("B")
        if not self._failure:
            self._write(piece)
        return len(piece)

    def flush(self) -> None:
        """There is nothing to flush; torch asks for it."""

    def close(self) -> None:
        """It raises OSError if any of the bytes was refused."""
        with self._file:
            if self._failure:
                raise self._failure

    def _write(self, piece: memoryview) -> None:
        written = 0
        try:
            while written < len(piece):
                written += self._file.write(piece[written:])
        except OSError as error:
            self._failure = error


def write_state(state: object, path: Path) -> None:
    """It is `torch.save`; the operating system has the bytes when it returns, the disk may not.

    Raises:
        OSError: the disk is full, or refuses.
    """
    file = PieceWriter(path)
    try:
        with _without_crc():
            torch.save(state, cast(IO[bytes], file))
    finally:
        file.close()


@contextmanager
def _without_crc() -> Iterator[None]:
    """Within it, torch puts no CRC-32 into its archives (2.6 and later can do without): nobody reads them, and they
    take a third of the time (torch 2.13, page cache)."""
    serialization = torch.serialization
    if not hasattr(serialization, "set_crc32_options"):
        yield
        return
    before = serialization.get_crc32_options()
    serialization.set_crc32_options(False)
    try:
        yield
    finally:
        serialization.set_crc32_options(before)


def fsync_and_hash(path: Path) -> Digest:
    """It forces a file of `write_state` to disk and describes it; it touches nothing that training changes.

    Raises:
        OSError: the disk has refused it.
    """
    with open_regular(path) as file:
        os.fsync(file.fileno())
        sha256 = sha256_of(file)
        return Digest(file.tell(), sha256)
