"""Recorded audio: from one rate to another.

N  samples of audio
"""

import numpy as np
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float32]
"""Audio of one channel in [-1, 1]."""


def resampled(wave_N: Wave, from_rate: float, to_rate: float) -> Wave:
    """It returns audio of `from_rate` samples a second at `to_rate`, N x to_rate / from_rate samples, rounded."""
    if from_rate == to_rate:
        return wave_N
    wave: Wave = soxr.resample(wave_N, from_rate, to_rate, quality="HQ")
    return wave
