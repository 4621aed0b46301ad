"""Audio becomes features: the logarithm of the power in each band of a mel filterbank, frame by frame.

What is computed is Kaldi's `fbank` without dither: each frame is freed of its mean, its high frequencies are raised
(y[n] = x[n] - 0.97 x[n-1]), it is weighted by a window and transformed. Numbers are those of audio in 16 bits.

This is done beside training, by one thread. Its arithmetic is that of numpy, which stays in that thread: however little
they have to do, the transform, the product of matrices and the logarithm of torch on CPUs take all threads of the
process, and wait for those that train.

N  samples of audio
T  frames
W  samples of a frame
F  frequencies of its transform
M  mel bins
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.mel import mel, mel_edges, transform_size

FULL_SCALE = 32768.0
PREEMPHASIS = 0.97
POVEY = 0.85
"""Kaldi's window is Hann's to this power."""

KNEE = 0.875
"""Frequencies are scaled up to this part of half the sample rate, as by Kaldi at 8 kHz (3,500 Hz); of the frequency and
of what it is scaled to, the higher is meant."""

SAMPLES_AT_ONCE = 1 << 15
"""Samples that are transformed at once: they stay in the cache of a core."""

STILL = 1e-5
"""A mel bin with a smaller standard deviation is constant but for rounding."""

Floats = NDArray[np.float32]


class LogMel:
    """It computes the features of audio at the rate of the configuration.

    Audio shorter than a window is filled up with silence to one frame. Silence has in all bins the logarithm of the
    epsilon of float32, about -15.9.
    """

    def __init__(self, data: SpeechConfig) -> None:
        self._data = data
        self._size = transform_size(data.window)
        self._at_once = max(SAMPLES_AT_ONCE // self._size, 1)
        self._window_W = FULL_SCALE * povey_window(data.window)
        self._filters = MelFilters(data.sample_rate, self._size, data.mel_bins)

    def __call__(self, audio_N: Tensor, warp: float = 1.0) -> Tensor:
        """It returns the features (T, M), float32, of audio (N), float32 from -1 to 1; T is `data.frames(N)`.
        Frequencies are scaled by `warp`."""
        window, hop = self._data.window, self._data.hop
        audio = np.pad(audio_N.numpy(), (0, max(window - len(audio_N), 0)))
        frames_TW = np.lib.stride_tricks.sliding_window_view(audio, window)[::hop]
        energies_TM = np.empty((len(frames_TW), self._data.mel_bins), np.float32)
        for first in range(0, len(frames_TW), self._at_once):
            here = slice(first, first + self._at_once)
            energies_TM[here] = self._filters(warped(self._power(frames_TW[here]), warp))
        return torch.from_numpy(np.log(np.maximum(energies_TM, np.finfo(np.float32).eps)))

    def _power(self, frames_TW: Floats) -> Floats:
        """It returns the power of frames (T, W) at each frequency (T, F)."""
        # In fp64 the mean of equal samples is what each of them is, so that nothing is left of them.
        frames_TW = frames_TW - frames_TW.mean(1, keepdims=True, dtype=np.float64).astype(np.float32)
        padded = np.zeros((len(frames_TW), self._size), np.float32)
        raised_TW = padded[:, : self._data.window]
        # The first sample, which has none before it, has no weight in the window.
        raised_TW[:, 1:] = frames_TW[:, 1:] - PREEMPHASIS * frames_TW[:, :-1]
        raised_TW *= self._window_W
        spectrum_TF = np.fft.rfft(padded).astype(np.complex64, copy=False)  # numpy 1 transforms in fp64
        return spectrum_TF.real**2 + spectrum_TF.imag**2


def warped(power_TF: Floats, factor: float) -> Floats:
    """It returns power as if the vocal tract were shorter by a factor: what was at a frequency is at `factor` times it.
    From the knee on it is stretched or compressed so that half the sample rate, the last frequency, stays.

    Between the frequencies of the transform, power is interpolated linearly.
    """
    if factor == 1.0:
        return power_TF
    last = power_TF.shape[1] - 1
    knee = KNEE * last * min(1.0, factor)
    source_F = np.interp(np.arange(last + 1), [0.0, knee, last], [0.0, knee / factor, last])
    below_F = np.minimum(source_F.astype(np.intp), last - 1)
    share_F = (source_F - below_F).astype(np.float32)
    return (1 - share_F) * power_TF[:, below_F] + share_F * power_TF[:, below_F + 1]


class MelFilters:
    """They are triangles over the mel scale, each of which begins in the middle of the one before it. So the power at a
    frequency goes to two of them: to one that rises there, and the rest of it to the one before, which falls."""

    def __init__(self, sample_rate: int, transform: int, mel_bins: int) -> None:
        self._mel_bins = mel_bins
        edges = np.array(mel_edges(sample_rate, mel_bins))
        mels_F = np.array([mel(sample_rate * number / transform) for number in range(transform // 2)])
        # Frequencies below the first filter take no part, and half the sample rate, where the last one has ended.
        self._heard = slice(int(np.searchsorted(mels_F, edges[0], side="right")), transform // 2)
        mels_F = mels_F[self._heard]
        rising_F = np.searchsorted(edges, mels_F) - 1
        self._risen_F = ((mels_F - edges[rising_F]) / np.diff(edges)[rising_F]).astype(np.float32)
        self._rising, self._first = np.unique(rising_F, return_index=True)

    def __call__(self, power_TF: Floats) -> Floats:
        """It returns the energy that each filter lets through (T, M)."""
        power_TF = power_TF[:, self._heard]
        rising_TF = power_TF * self._risen_F
        rising_TM, falling_TM = np.zeros((2, len(power_TF), self._mel_bins + 1), np.float32)
        rising_TM[:, self._rising] = np.add.reduceat(rising_TF, self._first, axis=1)
        falling_TM[:, self._rising] = np.add.reduceat(power_TF - rising_TF, self._first, axis=1)
        energies_TM: Floats = rising_TM[:, :-1] + falling_TM[:, 1:]
        return energies_TM


def povey_window(samples: int) -> Floats:
    """It returns the window that Kaldi weights frames with by default."""
    window: Floats = (np.hanning(samples) ** POVEY).astype(np.float32)
    return window


def normalized(features_TM: Tensor) -> Tensor:
    """It returns features with mean 0 and deviation 1 of each mel bin over the utterance; what does not change is 0."""
    features = features_TM.numpy().astype(np.float64)
    features -= features.mean(0)
    features /= np.maximum(features.std(0), STILL)
    return torch.from_numpy(features.astype(np.float32))
