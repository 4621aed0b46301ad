"""Recordings stay as they were when lists first named them: else new audio would get the transcripts of the old."""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.files import identity_of
from data_pipeline.shown import shown

Seen = tuple[Path, int]
"""A recording, and what is another where it has changed."""


class Recordings:
    """It knows how recordings were, in the order in which lists name them: 8 bytes for each, however many there are."""

    def __init__(self) -> None:
        self._states = array("q")

    def look(self, path: Path) -> tuple[int, int]:
        """It notes how the next recording is, and returns its size and time of change: zeros where it cannot be looked
        at, which is told when it is read."""
        state = _state(path)
        self._states.append(hash(state))
        return state[2:]

    def again(self) -> Callable[[Path], Seen]:
        """It returns what tells how recordings were, asked for them in the same order."""
        states: Iterator[int] = iter(self._states)
        return lambda path: (path, next(states))


def check_unchanged(seen: Seen) -> None:
    """It raises DataError for a recording that is not as it was."""
    path, before = seen
    if hash(_state(path)) != before:
        raise DataError(f"{shown(path)}: has changed while it was read")


def _state(path: Path) -> tuple[int, int, int, int]:
    try:
        return identity_of(path.stat())
    except OSError:
        return 0, 0, 0, 0
