"""A baseline says what a signal is expected to be, from the values of it that were accepted."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from pretrain.watchdog.robust import median, sigma_of

REFILL = 64
"""Values that are enough to go on with after `restart`, if the window is longer."""
_REFRESH = 8
"""Accepted values between two fits."""
_RECENT = 16
"""Newest values, at least, whose median is called recent."""


@dataclass
class Line:
    """It is a robust line through the window, with the spread about it."""

    median: float = 0.0
    slope: float = 0.0
    """Per accepted value, from the medians of the two halves."""
    spread: float = 0.0
    """1.4826 MAD about the line, not below the floor."""
    lag: float = 0.0
    """Accepted values from the middle of the window to now."""
    recent: float = 0.0
    """Median of the window's last quarter, or of 16 values."""
    count: int = 0
    """Values that it is a fit of; 0 is none yet."""


class Baseline:
    """It knows median, trend and spread of the last `window` accepted values, `guard` values late.

    All arithmetic is selection, or IEEE operations element by element, so hosts of one run agree to the bit.
    """

    def __init__(self, *, window: int, guard: int, floor: float) -> None:
        """`floor` is the least spread, in the units of the values."""
        self._window, self._guard, self._floor = window, guard, floor
        self._needed = window
        self._values: deque[float] = deque(maxlen=window)
        self._pending: list[float] = []
        self._unfitted = 0
        self._line = Line()

    @property
    def count(self) -> int:
        """It counts the values that what is expected rests on; 0 while there are too few."""
        return self._line.count

    def excess(self, value: float, sign: int) -> float:
        """It returns how far `value` lies above (`sign` 1) or below (-1) what is expected, in robust standard
        deviations.

        Expected is the recent median, or the end of the line where that is farther off in this direction.
        So a trend for the worse that was there before, which healthy signals have, adds nothing to a sum; and a trend
        for the better is not counted upon to go on, because curves flatten out.
        """
        line = self._line
        end = line.median + line.slope * line.lag
        return (sign * value - max(sign * line.recent, sign * end)) / line.spread

    def accept(self, value: float) -> None:
        """Let a value take part, once as many as the guard have come after it."""
        self._pending.append(value)
        if len(self._pending) <= self._guard:
            return
        self._values.append(self._pending.pop(0))
        self._unfitted += 1
        enough = len(self._values) >= self._needed
        if enough and (self._unfitted >= _REFRESH or not self._line.count):
            self._fit()

    def withdraw(self, count: int) -> None:
        """Forget the newest `count` of the values that are not in the window yet."""
        del self._pending[max(0, len(self._pending) - count) :]

    def restart(self) -> None:
        """Forget everything; `REFILL` values will do to go on."""
        self._needed = min(self._window, REFILL)
        self._values.clear()
        self._pending.clear()
        self._unfitted, self._line = 0, Line()

    def _fit(self) -> None:
        values = np.array(self._values)
        count, half = len(values), len(values) // 2
        level = median(values)
        slope = (median(values[-half:]) - median(values[:half])) / (count - half)
        deviations = values - level - slope * (np.arange(count) - (count - 1) / 2)
        recent = median(values[-max(count // 4, _RECENT) :])
        spread = max(sigma_of(deviations), self._floor)
        lag = count / 2 + self._guard + _REFRESH / 2
        self._line = Line(level, slope, spread, lag, recent, count)
        self._unfitted = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": list(self._values),
            "pending": list(self._pending),
            "needed": self._needed,
            "unfitted": self._unfitted,
            "line": vars(self._line).copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._values = deque(state["values"], maxlen=self._window)
        self._pending = list(state["pending"])
        self._needed = min(state["needed"], self._window)
        self._unfitted, self._line = state["unfitted"], Line(**state["line"])
