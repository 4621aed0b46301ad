"""A long task shows its progress: as a bar on a terminal, as plain lines elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

LINES = 5
"""Plain lines that a task prints on its way."""


class Advance(Protocol):
    """It tells how far a task is."""

    def __call__(self, done: int) -> None:
        """It is told that so much more is done."""


@contextmanager
def progress(title: str, total: int, *, in_bytes: bool = True) -> Iterator[Advance]:
    """It shows the progress of a task of `total` bytes, or other things, on standard error."""
    if not sys.stderr.isatty():
        yield _PlainProgress(title, total)
        return
    done = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)


class _PlainProgress:
    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._lines = 0

    def __call__(self, done: int) -> None:
        self._done += done
        while self._lines < LINES and self._done * LINES >= self._total * (self._lines + 1):
            self._lines += 1
            print(f"{self._title}: {self._lines / LINES:.0%}", file=sys.stderr, flush=True)
