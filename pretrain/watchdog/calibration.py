"""Thresholds from the run's own residuals.

Residuals of real signals are neither normal nor independent, and a threshold from a formula that takes them so gave
hundreds of false alarms in 100,000 steps. What is sought is the level that the sum crosses at most `RATE` times a
step when past residuals come again, in blocks, which keep their dependence over short times.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BLOCK = 32
"""Residuals in a row that are drawn together."""
RATE = 1e-6
"""Predicted false alarms for each step: 0.01 in 10,000."""
LOWEST, HIGHEST = 12.0, 30.0
"""Between these a calibrated threshold stays."""

_PATHS, _BLOCKS = 256, 16
_STEPS = _PATHS * _BLOCKS * BLOCK
_TAIL = 32
"""Highest peaks, of one path each, that the tail is fitted to."""


def calibrated_threshold(increments: Sequence[float], *, seed: int, least: float) -> float:
    """Decision level of a sum whose `increments` (residuals less the allowance) were these while it was healthy.

    256 paths of 16 blocks, 131,072 steps, are drawn; the upper tail of their highest sums, exponential for a random
    walk that drifts down, is extended to `RATE`. Never below `least`. Equal arguments give equal results. 3 ms.
    """
    least = max(LOWEST, least)
    if len(increments) < 4 * BLOCK:
        return least
    peaks = np.sort(_peaks(np.asarray(increments), np.random.default_rng(seed))).tolist()
    base = peaks[-_TAIL - 1]
    decay = sum(peak - base for peak in peaks[-_TAIL:]) / _TAIL
    level = base + decay * float(np.log(_TAIL / _STEPS / RATE))
    return round(min(max(level, least), max(HIGHEST, least)), 3)


def _peaks(increments: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Highest sum of each path: the random walk above its running minimum."""
    starts = generator.integers(0, len(increments) - BLOCK + 1, (_PATHS, _BLOCKS, 1))
    walk = increments[starts + np.arange(BLOCK)].reshape(_PATHS, -1).cumsum(axis=1)
    return (walk - np.minimum(np.minimum.accumulate(walk, axis=1), 0.0)).max(axis=1)
