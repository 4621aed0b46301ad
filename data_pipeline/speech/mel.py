"""The mel scale, and how filters lie on it as Kaldi lays them. Configurations are checked with it, so no torch."""

import math

LOWEST_HERTZ = 20.0
"""The first filter begins there; the last one ends at half the sample rate."""


def mel(hertz: float) -> float:
    """It returns the place of a frequency on the mel scale, in the form of O'Shaughnessy 1987."""
    return 1127.0 * math.log1p(hertz / 700.0)


def mel_edges(sample_rate: int, mel_bins: int) -> list[float]:
    """It returns places on the mel scale, evenly spaced: a filter rises from its place in the list to the next one and
    falls to the one after that."""
    first, last = mel(LOWEST_HERTZ), mel(sample_rate / 2)
    return [first + (last - first) * place / (mel_bins + 1) for place in range(mel_bins + 2)]


def transform_size(window: int) -> int:
    """It returns how many samples the Fourier transform of a window has: the next power of two."""
    return 1 << (window - 1).bit_length()


def most_mel_bins(sample_rate: int, window: int, most: int) -> int:
    """It returns how many filters there can be, `most` at most, for each to have a frequency of the transform in it."""
    return next((bins for bins in range(most, 0, -1) if _all_hear(sample_rate, window, bins)), 0)


def _all_hear(sample_rate: int, window: int, mel_bins: int) -> bool:
    size, edges = transform_size(window), mel_edges(sample_rate, mel_bins)
    places = [700.0 * math.expm1(edge / 1127.0) * size / sample_rate for edge in edges]
    return all(math.floor(left) + 1 < right for left, right in zip(places[:-2], places[2:], strict=True))
