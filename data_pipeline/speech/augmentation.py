"""Training samples are altered by chance: played faster or slower, as if by another vocal tract, and masked in bands of
frequency and spans of time.

N  samples of audio
T  frames
M  mel bins
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.speech.audio import resampled
from data_pipeline.speech.config import AugmentationConfig

WORD = 64
"""Bits of a number of chance."""


FOR_SPEED, FOR_MASKS, FOR_WARP = range(3)
"""What chance decides: each has numbers of its own, so that none depends on how many another takes."""


class Augmentation:
    """It alters samples. What becomes of one follows from its `chance` alone; without one, it stays as it is."""

    def __init__(self, config: AugmentationConfig, sample_rate: int) -> None:
        self._config = config
        self._sample_rate = sample_rate

    def speed(self, chance: int | None) -> float:
        """It returns the speed at which a sample is to be played."""
        if chance is None:
            return 1.0
        speeds = self._config.speeds
        return speeds[_upto(next(_numbers(chance, FOR_SPEED)), len(speeds) - 1)]

    def perturbed(self, audio_N: Tensor, speed: float) -> Tensor:
        """It returns float32 audio played at a speed, with about N / speed samples: tempo and pitch change together
        (Ko et al. 2015)."""
        return torch.from_numpy(resampled(audio_N.numpy(), speed * self._sample_rate, self._sample_rate))

    def lengths(self, samples_NK: NDArray[np.int32], chances_N: NDArray[np.uint64]) -> NDArray[np.int32]:
        """It returns how many samples of audio there are once each is played at the speed that its chance gives it."""
        speeds_N = np.array([self.speed(chance) for chance in chances_N.tolist()])
        return np.round(samples_NK / speeds_N[:, None]).astype(np.int32)

    def warp(self, chance: int | None) -> float:
        """It returns the factor that the frequencies of a sample are to be scaled by."""
        if chance is None:
            return 1.0
        least, greatest = self._config.frequency_warp
        return least + (greatest - least) * (next(_numbers(chance, FOR_WARP)) / 2**WORD)

    def masked(self, features_TM: Tensor, chance: int | None) -> Tensor:
        """It returns normalized features with bands and spans of them at their mean, 0 (arXiv 1904.08779).

        The width of each is anything from 0 to the widest, and its place any that it has room in, equally often.
        """
        if chance is None:
            return features_TM
        config, (frames, mel_bins) = self._config, features_TM.shape
        features, numbers = features_TM.numpy().copy(), _numbers(chance, FOR_MASKS)
        for _ in range(config.frequency_masks):
            features[:, _span(numbers, config.frequency_width, mel_bins)] = 0
        for _ in range(config.time_masks):
            widest = min(config.time_width, int(config.time_share * frames))
            features[_span(numbers, widest, frames)] = 0
        return torch.from_numpy(features)


def _span(numbers: Iterator[int], widest: int, length: int) -> slice:
    """It takes two numbers of chance and returns a span of at most `widest` places out of `length`."""
    width = _upto(next(numbers), min(widest, length))
    start = _upto(next(numbers), length - width)
    return slice(start, start + width)


def _numbers(chance: int, purpose: int) -> Iterator[int]:
    """It yields numbers of 64 bits that follow from a chance: those of Philox (Salmon et al. 2011), whose raw output
    numpy promises to keep in all versions."""
    generator = np.random.Philox(key=chance | purpose << WORD)
    while True:
        yield int(generator.random_raw())


def _upto(number: int, most: int) -> int:
    """It makes of a number of 64 bits one from 0 to `most`, all equally likely but for 2**-64."""
    return number * (most + 1) >> WORD
