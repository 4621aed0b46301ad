"""Samples of like lengths come together, so that little of a batch is padding.

An epoch is cut into windows. The samples of a window are sorted by their lengths and come in runs of neighbours, dealt
so that any few runs after one another have short and long samples alike: a step then has about as many tokens as the
next, and its micro-batches little padding. Which samples a window has is a matter of chance as it is without; how they
are arranged follows from their lengths.

Runs are counted through all epochs: where an epoch ends within a run the next one begins with what is missing of it,
both of middling lengths. So a run is a micro-batch in every epoch, however many samples there are; were runs counted
anew in each, from the second epoch on a micro-batch would have the end of one run, short samples say, and the beginning
of the next, of long ones.

N  samples
K  sides of a sample that are padded, such as source and target
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data_pipeline.source import Buckets

Integers = NDArray[np.int64]

RUNS = 128
"""Runs in a window: lengths are told apart as finely."""

GOLDEN = 0x9E3779B97F4A7C15
"""The golden ratio as a part of 2**64. Multiples of it, modulo that, lie as evenly as any, however many of them are
looked at (Knuth, The Art of Computer Programming 3, section 6.4)."""

WINDOWS_KEPT = 8


class Arrangement:
    """It is the order of the samples of one source in its epochs. An *offset* is a place in the epoch as it was
    shuffled, a *place* one in the epoch as it is read."""

    def __init__(self, buckets: Buckets, shuffled: Callable[[int, Integers], Integers]) -> None:
        """`shuffled` returns the samples at some offsets of an epoch."""
        self._buckets = buckets
        self._shuffled = shuffled
        self._size = RUNS * buckets.size
        self._window = lru_cache(WINDOWS_KEPT)(self._arranged)

    def offsets(self, epoch: int, places: Integers) -> Integers:
        """It returns the offset of the sample at each place."""
        return self._mapped(epoch, places, lambda window: window)

    def places(self, epoch: int, offsets: Integers) -> Integers:
        """It is the inverse of `offsets`."""
        return self._mapped(epoch, offsets, np.argsort)

    def _mapped(self, epoch: int, values: Integers, within: Callable[[Integers], Integers]) -> Integers:
        begun = self._begun(epoch)
        numbers, mapped = (values + begun) // self._size, np.empty_like(values)
        for number in np.unique(numbers).tolist():
            here, first = numbers == number, max(number * self._size - begun, 0)
            mapped[here] = first + within(self._window(epoch, number))[values[here] - first]
        return mapped

    def _begun(self, epoch: int) -> int:
        """It counts the samples that the epoch before has had of the run that this one begins with."""
        return epoch * len(self._buckets.lengths_NK) % self._buckets.size

    def _arranged(self, epoch: int, number: int) -> Integers:
        """It returns for each place of a window the offset in that window."""
        begun, size = self._begun(epoch), self._buckets.size
        first, stop = max(number * self._size - begun, 0), (number + 1) * self._size - begun
        offsets = np.arange(first, min(stop, len(self._buckets.lengths_NK)))
        order = by_length(self._buckets.lengths_NK[self._shuffled(epoch, offsets)])
        missing = min(-begun % size, len(order)) if number == 0 else 0
        runs, rest = divmod(len(order) - missing, size)
        # What makes no whole run is taken out of the middle.
        short, middle, long = np.split(order, np.array([0, missing + rest]) + runs // 2 * size)
        whole = np.concatenate([short, long]).reshape(runs, size)[dealt(runs, epoch + number)]
        return np.concatenate([middle[:missing], whole.ravel(), middle[missing:]])


def dealt(runs: int, start: int) -> Integers:
    """It returns in which order runs come that are numbered by length: in twos, a short one and the long one that makes
    up for it, and so that few of them are spread over all lengths. `start` sees to it that windows differ."""
    half = runs // 2
    multiples = (np.arange(half, dtype=np.uint64) + np.uint64(start)) * np.uint64(GOLDEN)
    short = np.argsort(np.argsort(multiples))
    return np.concatenate([np.stack((short, runs - 1 - short), 1).ravel(), np.arange(half, runs - half)])


def by_length(lengths_NK: NDArray[np.int32]) -> Integers:
    """It returns the samples in an order in which neighbours have like lengths on all sides: by that of the first, and
    where that is the same by the others, rising and falling in turns."""
    first_N, others_N = lengths_NK[:, 0], lengths_NK[:, 1:].sum(1)
    return np.lexsort((np.where(first_N % 2, others_N, -others_N), first_N))
