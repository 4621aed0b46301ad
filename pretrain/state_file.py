"""Files of state: torch writes them while the run waits; they are forced to disk and described while it goes on."""

import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch

_BLOCK = 2**23
"""Bytes that are read at once. Between two reads a thread asks for the interpreter, which the run needs as well."""


@dataclass(frozen=True)
class Digest:
    """What a file holds."""

    size: int
    """Bytes."""
    sha256: str


class PieceWriter:
    """A new file for `torch.save` that takes pieces whole: by its path torch writes a file in small ones, which takes
    several times as long.

    A failing write is raised by `close`, since between the two lies C++ that would write on.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be made."""
        self._file = path.open("wb", buffering=0)
        self._failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        piece = memoryview(data).cast("B")
        if not self._failure:
            self._write(piece)
        return len(piece)

    def flush(self) -> None:
        """There is nothing to flush; torch asks for it."""

    def close(self) -> None:
        """Raises OSError if any of the bytes was refused."""
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
    """`torch.save`; the operating system has the bytes when it returns, the disk may not.

    Raises:
        OSError: the disk is full, or refuses.
    """
    file = PieceWriter(path)
    try:
        torch.save(state, cast(IO[bytes], file))
    finally:
        file.close()


def settle(path: Path) -> Digest:
    """Force a file of `write_state` to disk and describe it; touches nothing that training changes.

    The file is an archive in which torch has put a CRC-32 of every record on its way out: bytes that have changed since
    are not described but refused.

    Raises:
        OSError: the disk has refused it, or it holds something else than what was written.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        try:
            with zipfile.ZipFile(file) as archive:
                bad = archive.testzip()
        except zipfile.BadZipFile as error:
            bad = str(error)
        if bad is not None:
            raise OSError(0, f"the content has changed while it was written ({bad})", str(path))
        digest = hashlib.sha256()
        file.seek(0)
        while block := file.read(_BLOCK):
            digest.update(block)
        return Digest(file.tell(), digest.hexdigest())
