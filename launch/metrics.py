"""This module reads the last rows of a run's `metrics.jsonl`."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from data_pipeline.files import last_lines
from data_pipeline.parsing import parse_json

Count = Annotated[int, Field(ge=0, lt=2**53)]
LAST_BYTES = 65_536
"""So much of the end of the file is looked at, and one whole row at least, however long that is."""


class Row(BaseModel):
    """It has what is looked for in a row; other measures stand beside it."""

    step: Count
    attempt: Count = 0
    loss: float | None = None
    validation_loss: float | None = None


def last_rows(metrics: Path) -> list[dict[str, Any]] | None:
    """It returns rows of the end of the file, oldest first, or None where there is no such file here."""
    try:
        lines = last_lines(metrics, LAST_BYTES)
    except OSError:
        return None
    return [row for line in lines if (row := _row(line)) is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    """It parses a row; it returns None for the torn one at the end, and for what is no row."""
    try:
        row = parse_json(line)
        Row.model_validate(row, strict=True)
    except ValueError:
        return None
    return dict(row)
