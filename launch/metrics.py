"""This module reads the last rows of a run's `metrics.jsonl`."""

import json
from pathlib import Path
from typing import Any

LAST_BYTES = 65_536
"""So much of the end of the file holds its last rows."""


def last_rows(metrics: Path) -> list[dict[str, Any]] | None:
    """It returns rows of the end of the file, oldest first, or None where there is no such file here."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(metrics.stat().st_size - LAST_BYTES, 0))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return [row for line in lines if (row := _row(line)) is not None]


def _row(line: str) -> dict[str, Any] | None:
    """It parses a row; it returns None for the torn one at the cut or at the end."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
