"""`metrics.jsonl`: the course of a run for scripts, one JSON object a line, appended and never rewritten.

Rows with `loss` are training steps, rows with `validation_loss` are evaluations. Each has its `step` and the
number of the `session` (start of the run) that wrote it. A resumed run may write a step again: of two rows of
one kind and step the last one counts. A number that is not finite is null and named in `nonfinite`.
The operating system has a row when `append` returns: it survives kill -9, not a power cut.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from data_pipeline.parsing import parse_json
from pretrain.runtime.line_file import LineFile

Row = Mapping[str, float | int | str]


class MetricsFile:
    """It appends rows; the file holds whole lines, whatever happened to an earlier process or to the disk."""

    def __init__(self, path: Path, say: Callable[[str], None] = print) -> None:
        """It opens or makes the file and cuts off a line that was torn by a crash. `say` is told what others have done
        to the file. It may raise OSError."""
        self._name, self._say = path.name, say
        self._file = LineFile(path)
        self._session = next(filter(None, map(_session_of, self._file.backwards())), 0) + 1

    def append(self, row: Row) -> None:
        """It may raise OSError, and then leaves nothing of the row."""
        if loss := self._file.loss():
            # What has no name any more can still be read, and the file that has it now is not the run's.
            self._file.begin_anew(reversed([*self._file.backwards()]))
            self._say(f"{self._name} {loss} by another program and was written anew with the rows there were")
        self._file.append(json.dumps(_finite({**row, "session": self._session}), allow_nan=False).encode())

    def close(self) -> None:
        self._file.close()


def _session_of(line: bytes) -> int:
    """It returns the session that wrote a line, 0 if the line does not say."""
    try:
        return int(parse_json(line)["session"])
    except (ValueError, KeyError, TypeError):
        return 0


def _finite(row: Row) -> dict[str, float | int | str | list[str] | None]:
    nonfinite = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    values = {name: None if name in nonfinite else value for name, value in row.items()}
    return {**values, "nonfinite": nonfinite} if nonfinite else {**values}
