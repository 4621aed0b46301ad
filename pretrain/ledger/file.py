"""`ledger.jsonl` has what a run has seen, decided and done, one record a line, appended and never rewritten.

Each record holds the SHA-256 of the line before it, so that a line that was changed, lost or put in between is
noticed (lines that were cut off at the end are not). It is on the disk when `append` returns: what a process finds
after a crash is a prefix of what was written, and the state of the run is a fold over it (`history`).
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from data_pipeline.files import sync_folder
from data_pipeline.parsing import read_whole, reason
from data_pipeline.shown import shown
from pretrain.errors import CheckpointError
from pretrain.ledger.history import RunHistory, fold
from pretrain.ledger.record import Record, decode, encode
from pretrain.ledger.shape import check_fields
from pretrain.runtime.line_file import LineFile

LARGEST_LEDGER = 2**30
"""Bytes; a record has some hundred."""
BEGINNING = "0" * 64
"""Stands for the digest of the line before the first."""
BROKEN = "does not follow from the line before: one of the two was changed, or lines are missing in between"


class LedgerFile:
    """The file of a ledger appends records, and needs one writer per run. One that is removed, replaced, cut or
    added to meanwhile is written anew, from memory."""

    def __init__(self, path: Path) -> None:
        """Open or make the ledger and cut off a line that was torn by a crash.

        Raises CheckpointError if it was changed or is not understood, and OSError.
        """
        self._lines = _lines(path) if os.path.lexists(path) else []
        records = tuple(_records(path, self._lines))
        self._last = _digest(self._lines[-1]) if self._lines else BEGINNING
        self.history: RunHistory = fold(records)
        self.losses: list[str] = []
        """What others have done to the file, in words."""
        self._path = path
        self._seq = len(records)
        self._file = LineFile(path)
        sync_folder(path.parent)

    def append(self, record: Record) -> Record:
        """Write a record, stamped with its place and time, and wait until the disk has it.

        Raises OSError, and then neither the file nor `history` has changed.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        stamped = replace(record, seq=self._seq + 1, time=now)
        history = self.history.after(stamped)
        line = encode(stamped, self._last)
        if loss := self._file.loss():
            self._file.begin_anew(self._lines)
            self.losses.append(f"{self._path} {loss} by another program and was written anew from memory")
        self._file.append(line, durable=True)
        self._lines.append(line)
        self.history, self._seq, self._last = history, stamped.seq, _digest(line)
        return stamped

    def records(self) -> tuple[Record, ...]:
        """It returns all records so far."""
        return read_ledger(self._path)

    def close(self) -> None:
        self._file.close()


def read_ledger(path: Path) -> tuple[Record, ...]:
    """It returns the records of a ledger, which another process may be writing.

    Raises CheckpointError if it was changed or is not understood, and OSError.
    """
    return tuple(_records(path, _lines(path)))


def _lines(path: Path) -> list[bytes]:
    content = read_whole(path, LARGEST_LEDGER, follow=False)
    return content.split(b"\n")[:-1]  # what follows the last line break was torn by a crash


def _records(path: Path, lines: list[bytes]) -> Iterator[Record]:
    expected = BEGINNING
    for number, line in enumerate(lines, start=1):
        try:
            record, previous = decode(line)
            check_fields(record)
        except ValueError as error:
            raise CheckpointError(_refusal(path, number, reason(error))) from None
        if previous != expected or record.seq != number:
            raise CheckpointError(_refusal(path, number, BROKEN))
        expected = _digest(line)
        yield record


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _refusal(path: Path, number: int, fault: str) -> str:
    return (
        f"{shown(path)}:{number}: {fault}; what the run has skipped and spent cannot be told. Restore the file from a "
        f"copy, or keep only its first {number - 1} lines, and the run forgets what came after them"
    )
