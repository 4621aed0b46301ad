"""Thresholds are calibrated on the run's own residuals.

Residuals of real signals are neither normal nor independent, so that no formula that takes them so will do
(docs/watchdog.md). What is sought is the level that the sum crosses at most `RATE` times a step. Two estimates are made
of it, and the higher one counts:

- Past residuals come again, in blocks, which keep their dependence over short times. This sees skew and a mean that is
  off.
- A random walk of drift -1 and variance F a step stays above h at a rate of about exp(-2 h / F), which makes
  h = F / 2 ln(1 / RATE) = 8 F; F is the long-run variance of residuals over their variance, 1 where they are
  independent, 3 for a correlation of 0.5 from one to the next. This sees dependence, of which two thousand residuals
  have too few long excursions for the bootstrap.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BLOCK = 32
"""Residuals in a row that are drawn together."""
RATE = 1e-7
"""Predicted false alarms of one sum for each step: those of all signals together stay below 0.01 in 10,000."""
LOWEST, HIGHEST = 12.0, 30.0
"""Between these a calibrated threshold stays."""

_LAGS = 10
_PATHS, _BLOCKS = 256, 16
_STEPS = _PATHS * _BLOCKS * BLOCK
_TAIL = 32
"""Highest peaks, of one path each, that the tail is fitted to."""


def calibrated_threshold(increments: Sequence[float], *, seed: int, least: float) -> float:
    """It returns the decision level of a sum that had these `increments` (residuals less the allowance) when healthy.

    The level is never below `least`. Equal arguments give equal results. The call takes about 3 ms.
    """
    least = max(LOWEST, least)
    if len(increments) < 4 * BLOCK:
        return least
    values = np.asarray(increments)
    needed = max(_bootstrapped(values, seed), 0.5 * _dependence(values) * math.log(1 / RATE))
    return round(min(max(needed, least), max(HIGHEST, least)), 3)


def _bootstrapped(increments: npt.NDArray[np.float64], seed: int) -> float:
    """It extends to `RATE` the exponential upper tail of the peaks of 256 paths of 16 blocks, 131,072 steps."""
    peaks = np.sort(_peaks(increments, np.random.default_rng(seed))).tolist()
    base = peaks[-_TAIL - 1]
    decay = sum(peak - base for peak in peaks[-_TAIL:]) / _TAIL
    return base + decay * math.log(_TAIL / _STEPS / RATE)


def _peaks(increments: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """It returns the highest sum of each path: the random walk above its running minimum."""
    starts = generator.integers(0, len(increments) - BLOCK + 1, (_PATHS, _BLOCKS, 1))
    walk = increments[starts + np.arange(BLOCK)].reshape(_PATHS, -1).cumsum(axis=1)
    return (walk - np.minimum(np.minimum.accumulate(walk, axis=1), 0.0)).max(axis=1)


def _dependence(increments: npt.NDArray[np.float64]) -> float:
    """It returns long-run variance over variance, from ten autocorrelations with Bartlett's weights."""
    centred = increments - increments.mean()
    variance = float((centred * centred).sum()) or 1.0
    weighted = (
        (1 - lag / (_LAGS + 1)) * float((centred[lag:] * centred[:-lag]).sum()) for lag in range(1, _LAGS + 1)
    )
    return 1 + 2 * sum(weighted) / variance
