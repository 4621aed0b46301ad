"""Whether the loss still falls is a witness against alarms of other signals."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pretrain.watchdog.robust import error_of_difference, median, sigma_of

SPAN = 64
"""Losses on each side of an onset that are compared at most."""
FEWEST = 16
"""And at least."""
SIGMAS = 2.0
"""Standard errors by which the median must have fallen."""


@dataclass(frozen=True)
class LossTrend:
    """It has the last finite losses of a run, by step; it goes into checkpoints, and back with them."""

    losses: tuple[tuple[int, float], ...] = ()

    def after(self, step: int, loss: float) -> "LossTrend":
        """It returns the trend with one more loss."""
        return LossTrend((*self.losses[1 - 2 * SPAN :], (step, loss))) if np.isfinite(loss) else self

    def falling(self, onset: int) -> bool:
        """It says whether the losses since `onset` are clearly lower than as many before; of few, more are taken."""
        since = sum(step >= onset for step, _ in self.losses)
        count = min(max(since, FEWEST), SPAN)
        if len(self.losses) < 2 * count:
            return False
        values = np.array([loss for _, loss in self.losses[-2 * count :]])
        before, now = values[:count], values[count:]
        sigma = max(sigma_of(side - median(side)) for side in (before, now))
        return median(now) < median(before) - SIGMAS * error_of_difference(sigma, count, count)

    @classmethod
    def of(cls, losses: Iterable[tuple[int, float]]) -> "LossTrend":
        """It reads the losses as JSON has them."""
        return cls(tuple((step, loss) for step, loss in losses))
