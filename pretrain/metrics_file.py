"""`metrics.jsonl`: the course of a run for scripts, one JSON object a line, appended and never rewritten.

Rows with `loss` are training steps, rows with `validation_loss` are evaluations. Each has its `step` and the
number of the `session` (start of the run) that wrote it. A resumed run may write a step again: of two rows of
one kind and step the last one counts. A number that is not finite is null and named in `nonfinite`.
The operating system has a row when `append` returns: it survives kill -9, not a power cut.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

_TAIL = 2**16

Row = Mapping[str, float | int | str]


class MetricsFile:
    """Appends rows; the file holds whole lines, whatever happened to an earlier process or to the disk."""

    def __init__(self, path: Path) -> None:
        """Open or make the file and cut off a line that was torn by a crash. Raises OSError."""
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._descriptor, self._whole_lines())
        self._session = self._last_session() + 1

    def append(self, row: Row) -> None:
        """Raises OSError, and then leaves nothing of the row."""
        line = json.dumps(_finite({**row, "session": self._session}), allow_nan=False) + "\n"
        size = self._size()
        try:
            _write_all(self._descriptor, line.encode())
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _whole_lines(self) -> int:
        """Bytes up to the end of the last whole line."""
        end = self._size()
        while end:
            start = max(0, end - _TAIL)
            newline = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def _last_session(self) -> int:
        size = self._size()
        lines = os.pread(self._descriptor, _TAIL, max(0, size - _TAIL)).splitlines()
        return next(filter(None, map(_session_of, reversed(lines))), 0)


def _session_of(line: bytes) -> int:
    """0 if the line does not say."""
    try:
        return int(json.loads(line)["session"])
    except (ValueError, KeyError, TypeError):
        return 0


def _finite(row: Row) -> dict[str, float | int | str | list[str] | None]:
    nonfinite = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    values = {name: None if name in nonfinite else value for name, value in row.items()}
    return {**values, "nonfinite": nonfinite} if nonfinite else {**values}


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
