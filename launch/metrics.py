"""This module reads the last rows of a run's `metrics.jsonl`."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.files import last_lines

LAST_BYTES = 65_536
"""So much of the end of the file is looked at, and one whole row at least, however long that is."""


def last_rows(metrics: Path) -> list[dict[str, Any]] | None:
    """It returns rows of the end of the file, oldest first, or None where there is no such file here."""
    try:
        lines = last_lines(metrics, LAST_BYTES)
    except OSError:
        return None
    return [row for line in lines if (row := _row(line.decode(errors="replace"))) is not None]


def _row(line: str) -> dict[str, Any] | None:
    """It parses a row; it returns None for what is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
