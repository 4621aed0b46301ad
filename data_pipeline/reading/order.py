"""The sample order is made of pure functions that lead from a position in the stream to a sample.

    position --skip list--> draw --mixture--> (source, turn) --permutation--> (source, epoch, index)

Permutations can be taken back: `reading/skips.py` asks where samples that are left out come again. Where samples
differ in length, an epoch is arranged so that those of like length come together (`reading/buckets.py`).

A *position* counts the samples that a run has consumed. A *draw* is a place in the endless raw sequence, the
same for every run with this seed and data; draws of the skip list are jumped over. A *turn* counts the draws
of one source; its epochs are runs of as many turns as it has samples. No step looks at what came before, so
the first and the billionth sample are found at the same cost, and any split of the positions over ranks,
micro-batches or processes sees the same samples.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from data_pipeline.reading.buckets import Arrangement, Integers
from data_pipeline.reading.ranges import SampleRange
from data_pipeline.reading.weights import CYCLE, apportion
from data_pipeline.source import Buckets

FEISTEL_ROUNDS = 8


@dataclass(frozen=True)
class SourceShape:
    """It holds what the order needs to know of one source."""

    fingerprint: str
    samples: int
    weight: float = 1.0
    buckets: Buckets | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Draws:
    """It says where draws lead, in three arrays of one length."""

    source: Integers
    epoch: Integers
    index: Integers


@dataclass(frozen=True)
class SampleOrder:
    """It is the endless sequence of samples of a mixture.

    Raises ValueError where a weight is too small to be drawn once in a cycle.
    """

    seed: int
    sources: tuple[SourceShape, ...]
    shuffle: bool = True

    def __post_init__(self) -> None:
        if 0 in self.counts:
            raise ValueError(
                f"weight of source {self.counts.index(0)} is below {1 / CYCLE:g} of the sum of all weights"
            )

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """It counts the draws of each source in a cycle."""
        weights = [source.weight for source in self.sources]
        # A sum that is rounded otherwise may give a run that goes on another order than it began with.
        return apportion(weights, CYCLE, float(np.sum(weights)))

    def locate(self, draws: Integers) -> Draws:
        """It finds the samples of `draws` (any order, repeats allowed)."""
        source, turn = self._turns(draws)
        epoch, index = np.empty_like(draws), np.empty_like(draws)
        for number, shape in enumerate(self.sources):
            mine = source == number
            epoch[mine], offset = np.divmod(turn[mine], shape.samples)
            index[mine] = self._shuffled(number, epoch[mine], offset) if self.shuffle else offset
        return Draws(source, epoch, index)

    def lengths(self, draws: Integers) -> NDArray[np.int32] | None:
        """It returns how long the samples of these draws are, on each side; none where all have one length."""
        sides = [shape.buckets.lengths_NK.shape[1] for shape in self.sources if shape.buckets]
        if not sides:
            return None
        found, chances = self.locate(draws), self.chances(draws)
        lengths_NK = np.empty((len(draws), sides[0]), np.int32)
        for number, shape in enumerate(self.sources):
            mine = found.source == number
            if shape.buckets:
                lengths_NK[mine] = shape.buckets.lengths(found.index[mine], chances[mine])
        return lengths_NK

    def chances(self, draws: Integers) -> NDArray[np.uint64]:
        """It returns a number for each draw, by which its sample may be altered: no two runs with other seeds agree."""
        return _mix(draws.astype(np.uint64) + _round_keys(_key("chance", self.seed))[0])

    def _turns(self, draws: Integers) -> tuple[Integers, Integers]:
        """It returns the source of each draw, and how many draws of that source come before it."""
        if len(self.sources) == 1:
            return np.zeros_like(draws), draws
        cycle, place = np.divmod(draws, CYCLE)
        source, turn = np.empty_like(draws), np.empty_like(draws)
        for number in np.unique(cycle):
            here = cycle == number
            sources = self._cycle(int(number))
            source[here] = sources[place[here]]
            turn[here] = number * np.asarray(self.counts)[source[here]] + _occurrence(sources)[place[here]]
        return source, turn

    def turns_of(self, source: int, epoch: int, indices: Integers) -> Integers:
        """It returns the turns at which samples of a source come in an epoch."""
        shape = self.sources[source]
        if not self.shuffle:
            return epoch * shape.samples + indices
        places = permute_back(indices, shape.samples, self._epoch_key(source, epoch))
        if arrangement := self._arrangements[source]:
            places = arrangement.places(epoch, places)
        return epoch * shape.samples + places

    def turns_before(self, draw: int) -> tuple[int, ...]:
        """It counts the draws of each source that come before this one."""
        if len(self.sources) == 1:
            return (draw,)
        cycle, place = divmod(draw, CYCLE)
        here = np.bincount(self._cycle(cycle)[:place], minlength=len(self.sources)).tolist()
        return tuple(cycle * count + more for count, more in zip(self.counts, here, strict=True))

    def _cycle(self, number: int) -> Integers:
        """It returns the source of each draw of a cycle: shuffled, or spread evenly where the order is kept."""
        sources = np.repeat(np.arange(len(self.counts)), self.counts)
        if self.shuffle:
            return sources[permute(np.arange(CYCLE), CYCLE, _key("mixture", self.seed, number))]
        return sources[
            np.argsort((_occurrence(sources) + 0.5) / np.take(self.counts, sources), kind="stable")
        ]

    def _shuffled(self, source: int, epochs: Integers, offsets: Integers) -> Integers:
        index, arrangement = np.empty_like(offsets), self._arrangements[source]
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            places = offsets[here]
            index[here] = self._permuted(
                source, epoch, arrangement.offsets(epoch, places) if arrangement else places
            )
        return index

    @cached_property
    def _arrangements(self) -> tuple[Arrangement | None, ...]:
        """It has the arrangement of each source whose samples differ in length."""
        return tuple(
            Arrangement(shape.buckets, partial(self._permuted, number)) if shape.buckets else None
            for number, shape in enumerate(self.sources)
        )

    def _permuted(self, source: int, epoch: int, offsets: Integers) -> Integers:
        return permute(offsets, self.sources[source].samples, self._epoch_key(source, epoch))

    def _epoch_key(self, source: int, epoch: int) -> bytes:
        return _key("epoch", self.seed, source, self.sources[source].fingerprint, epoch)


def permute(indices: Integers, length: int, key: bytes) -> Integers:
    """It maps `indices` through a pseudo-random permutation of range(length) that `key` selects.

    A Feistel network on the smallest square grid that holds the range, applied again to what falls outside
    (cycle walking): Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
    """
    side = math.isqrt(length - 1) + 1
    keys = _round_keys(key)
    out = _feistel(indices.astype(np.uint64), side, keys)
    while (outside := out >= length).any():
        out[outside] = _feistel(out[outside], side, keys)
    return np.asarray(out, dtype=np.int64)


def permute_back(indices: Integers, length: int, key: bytes) -> Integers:
    """It is the inverse of `permute`."""
    side = math.isqrt(length - 1) + 1
    keys = _round_keys(key)[::-1]
    out = _feistel_back(indices.astype(np.uint64), side, keys)
    while (outside := out >= length).any():
        out[outside] = _feistel_back(out[outside], side, keys)
    return np.asarray(out, dtype=np.int64)


def draws_at(positions: Integers, skip: Sequence[SampleRange]) -> Integers:
    """It returns the draws that stand at `positions` when the merged ranges of `skip` are jumped over."""
    if not skip:
        return positions
    starts, ends = np.asarray(skip, dtype=np.int64).T
    jumped: Integers = np.concatenate([[0], np.cumsum(ends - starts)])
    return positions + jumped[np.searchsorted(starts - jumped[:-1], positions, side="right")]


def _occurrence(sources: Integers) -> Integers:
    """It counts how many equal entries come before each entry."""
    before = np.empty_like(sources)
    for source in np.unique(sources):
        here = sources == source
        before[here] = np.arange(np.count_nonzero(here))
    return before


def _feistel(values: NDArray[np.uint64], side: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """It takes the values once through the network over the grid of side x side."""
    left, right = np.divmod(values, np.uint64(side))
    for key in keys:
        left, right = right, (left + _mix(right + key) % np.uint64(side)) % np.uint64(side)
    return left * np.uint64(side) + right


def _feistel_back(values: NDArray[np.uint64], side: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """It is the inverse of `_feistel` with the keys in the opposite order."""
    left, right = np.divmod(values, np.uint64(side))
    for key in keys:
        # Unsigned: what is taken away is made up for by one side first.
        left, right = (right + np.uint64(side) - _mix(left + key) % np.uint64(side)) % np.uint64(side), left
    return left * np.uint64(side) + right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """It is the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _key(*parts: object) -> bytes:
    return "/".join(map(str, parts)).encode()


def _round_keys(key: bytes) -> NDArray[np.uint64]:
    return np.frombuffer(hashlib.blake2b(key, digest_size=8 * FEISTEL_ROUNDS).digest(), dtype="<u8")
