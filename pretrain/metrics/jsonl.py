"""`metrics.jsonl`: the course of a run for scripts, one JSON object a line, appended and never rewritten.

Rows with `loss` are training steps, rows with `validation_loss` are evaluations. Each has its `step` and the
number of the `session` (start of the run) that wrote it. A resumed run may write a step again: of two rows of
one kind and step the last one counts. A number that is not finite is null and named in `nonfinite`.
The operating system has a row when `append` returns: it survives kill -9, not a power cut.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from pretrain.runtime.line_file import LineFile

_TAIL = 2**16

Row = Mapping[str, float | int | str]


class MetricsFile:
    """It appends rows; the file holds whole lines, whatever happened to an earlier process or to the disk."""

    def __init__(self, path: Path) -> None:
        """It opens or makes the file and cuts off a line that was torn by a crash. It may raise OSError."""
        self._file = LineFile(path)
        self._session = self._last_session() + 1

    def append(self, row: Row) -> None:
        """It may raise OSError, and then leaves nothing of the row."""
        self._file.append(json.dumps(_finite({**row, "session": self._session}), allow_nan=False).encode())

    def close(self) -> None:
        self._file.close()

    def _last_session(self) -> int:
        lines = self._file.tail(_TAIL).splitlines()
        return next(filter(None, map(_session_of, reversed(lines))), 0)


def _session_of(line: bytes) -> int:
    """It returns the session that wrote a line, 0 if the line does not say."""
    try:
        return int(json.loads(line)["session"])
    except (ValueError, KeyError, TypeError):
        return 0


def _finite(row: Row) -> dict[str, float | int | str | list[str] | None]:
    nonfinite = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    values = {name: None if name in nonfinite else value for name, value in row.items()}
    return {**values, "nonfinite": nonfinite} if nonfinite else {**values}
