"""Times of rows are read in a few notations, and must rise by equal steps.

T  rows
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

FORMATS = (
    "%d.%m.%Y %H:%M:%S",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
)
"""Beside ISO 8601. None that is read in two ways, such as 07/01/2016, is among them."""

NOTATIONS = "2016-07-01 02:00:00 or another time of ISO 8601, 01.07.2016 02:00:00, or 2016/7/1 2:00"

EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)

Microseconds = NDArray[np.int64]


class TimeReader:
    """It reads the times of a file. They are compared in UTC where they have an offset, else as they stand."""

    def __init__(self) -> None:
        self.zoned: bool | None = None
        """Whether they have an offset; none before the first one."""
        self._parsers: list[Callable[[str], datetime]] = [datetime.fromisoformat, *map(_parser, FORMATS)]

    def microseconds(self, text: str) -> int:
        """It returns a time in microseconds since 1970. Raises ValueError, with what is wrong with it."""
        time = self._parsed(text.strip())
        zoned = time.tzinfo is not None
        if self.zoned is None:
            self.zoned = zoned
        if zoned != self.zoned:
            raise ValueError(
                f"{text!r} has {'an' if zoned else 'no'} offset from UTC, other than the rows before"
            )
        return ((time.astimezone(UTC).replace(tzinfo=None) if zoned else time) - EPOCH) // MICROSECOND

    def _parsed(self, text: str) -> datetime:
        for number, parser in enumerate(self._parsers):
            try:
                time = parser(text)
            except ValueError:
                continue
            if number:  # the next row will have the same notation
                self._parsers.insert(0, self._parsers.pop(number))
            return time
        raise ValueError(f"{text!r} is no time; write {NOTATIONS}")


def _parser(notation: str) -> Callable[[str], datetime]:
    return lambda text: datetime.strptime(text, notation)


def in_words(microseconds: int, zoned: bool = False) -> str:
    """It writes a time as ISO 8601 has it."""
    return f"{EPOCH + int(microseconds) * MICROSECOND}{'+00:00' if zoned else ''}"


def unordered(times_T: Microseconds) -> int | None:
    """It returns the first row that is not later than the one before; none where times rise."""
    return _first(np.diff(times_T) <= 0)


def uneven(times_T: Microseconds) -> int | None:
    """It returns the first row that comes after another step than most do; none where all steps are the same."""
    return _first(np.diff(times_T) != usual_step(times_T))


def usual_step(times_T: Microseconds) -> int:
    """It returns the step in time that most rows of two or more come after."""
    steps, counts = np.unique(np.diff(times_T), return_counts=True)
    return int(steps[counts.argmax()])


def duration(microseconds: int) -> str:
    """It writes a span of time for people."""
    return str(microseconds * MICROSECOND)


def _first(odd: NDArray[np.bool_]) -> int | None:
    return int(odd.argmax()) + 1 if odd.any() else None
