"""Files that are hashed on their way out: their digest is of what was meant, not of what had reached the disk."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch

SMALL = 2**16
"""Bytes of a piece that is not worth a second thread."""


@dataclass(frozen=True)
class Digest:
    """What was written to a file."""

    size: int
    """Bytes."""
    sha256: str


class HashedFile:
    """A new file for `torch.save`, hashed by one thread while another hands the same bytes to the operating system.

    Pieces go out whole: torch itself writes a file by its path in small ones, which takes longer than to hash them.
    A failing write is raised by `close`, since between the two lies C++ that would write on.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file cannot be made."""
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._size = 0
        self._failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        piece = memoryview(data).cast("B")
        if self._failure:
            return len(piece)
        if len(piece) <= SMALL:
            self._hash.update(piece)
            self._write(piece)
        else:
            # The memory is the caller's again once this returns.
            hashing = self._thread.submit(self._hash.update, piece)
            self._write(piece)
            hashing.result()
        self._size += len(piece)
        return len(piece)

    def flush(self) -> None:
        """There is nothing to flush; torch asks for it."""

    def close(self) -> Digest:
        """Force the bytes to disk. Raises OSError if any of them was refused."""
        self._thread.shutdown()
        with self._file:
            if self._failure:
                raise self._failure
            os.fsync(self._file.fileno())
        return Digest(self._size, self._hash.hexdigest())

    def _write(self, piece: memoryview) -> None:
        written = 0
        try:
            while written < len(piece):
                written += self._file.write(piece[written:])
        except OSError as error:
            self._failure = error


def save_hashed(state: object, path: Path) -> Digest:
    """`torch.save`, durably.

    Raises:
        OSError: the disk is full, or refuses.
    """
    file = HashedFile(path)
    try:
        torch.save(state, cast(IO[bytes], file))
    finally:
        digest = file.close()
    return digest
