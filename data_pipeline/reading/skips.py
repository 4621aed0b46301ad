"""What a stream leaves out: ranges of draws, and the samples of some of them in all later epochs.

A sample that has thrown a run once would throw it again when its epoch is over. So it is left out wherever it comes
again, however often. Where a range has more samples of a source than that can spare, they are left out there alone.
Which draws that makes follows from the order and the ranges, so the state of a stream holds ranges and no more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.reading.buckets import Integers
from data_pipeline.reading.order import Draws, SampleOrder, draws_at
from data_pipeline.reading.ranges import SampleRange, merge_ranges

SPARED = 0.5
"""At least this part of the samples of each source is never left out for good."""
AHEAD = 4096
"""Positions whose draws are worked out together, at least."""


@dataclass(frozen=True)
class _Known:
    """It has the draws of some positions."""

    first: int
    draws: Integers


class Skips:
    """It maps positions of a stream to draws, past what is left out. What is left out never changes."""

    def __init__(
        self, order: SampleOrder, ranges: Iterable[Sequence[int]] = (), for_good: Iterable[Sequence[int]] = ()
    ) -> None:
        """`ranges` are left out, and the samples of those `for_good`, which are among them, in later epochs as well."""
        self._order = order
        self.ranges = merge_ranges(ranges)
        self.for_good = merge_ranges(for_good)
        self._gone = FirstMet.of(order, self.for_good)
        once = draws_of(self.ranges)
        self._twice = once[self._gone.again(order.locate(once))]
        """Draws of `ranges` that would be left out without them too."""
        self._known = _Known(0, np.arange(0))

    @classmethod
    def of(cls, order: SampleOrder, state: Mapping[str, Any]) -> "Skips":
        """It makes what had this state; one of before samples were left out for good goes on as it was."""
        return cls(order, state["skip"], state.get("skip_for_good", ()))

    def state(self) -> dict[str, Any]:
        """It returns what `of` reads: JSON-able."""
        return {
            "skip": [list(range_) for range_ in self.ranges],
            "skip_for_good": [list(range_) for range_ in self.for_good],
        }

    def after(self, ranges: Iterable[Sequence[int]], here: int) -> "Skips":
        """It returns what is left out with these ranges as well, one after the other, from draw `here` on."""
        skips = self
        for start, end in ranges:
            ahead = (max(int(start), here), max(int(end), here))
            more = Skips(self._order, [*skips.ranges, ahead], [*skips.for_good, ahead])
            skips = more if more.affordable else Skips(self._order, more.ranges, skips.for_good)
        return skips

    @property
    def affordable(self) -> bool:
        """It says whether every source keeps the part that it must."""
        sources = self._order.sources
        gone = np.bincount(self._gone.source, minlength=len(sources)).tolist()
        return all(
            count <= (1 - SPARED) * source.samples for count, source in zip(gone, sources, strict=True)
        )

    def draws_at(self, positions: Integers) -> Integers:
        """It returns the draws that stand at these positions, at the same cost wherever they are."""
        if not len(self._gone.source):
            return draws_at(positions, self.ranges)
        first, last, known = int(positions.min()), int(positions.max()), self._known
        if not known.first <= first <= last < known.first + len(known.draws):
            known = self._known = self._work_out(first, last + 1 - first + AHEAD)
        return known.draws[positions - known.first]

    def left_out(self, draws: Integers) -> NDArray[np.bool_]:
        """It says of each of these draws whether it is left out."""
        starts, ends = np.array(self.ranges, np.int64).reshape(-1, 2).T
        end = np.concatenate([[0], ends])[np.searchsorted(starts, draws, side="right")]
        return (draws < end) | self._gone.again(self._order.locate(draws))

    def _work_out(self, first: int, count: int) -> _Known:
        """It returns the draws of so many positions from `first` on."""
        draw, before = first, -1
        while draw != before:
            draw, before = first + self._left_out_before(draw), draw
        found = np.arange(0)
        while len(found) < count:
            draws = draw + np.arange(count)
            found = np.concatenate([found, draws[~self.left_out(draws)]])
            draw += count
        return _Known(first, found)

    def _left_out_before(self, draw: int) -> int:
        """It counts the draws before this one that are left out."""
        once = sum(min(end, draw) - start for start, end in self.ranges if start < draw)
        again = self._gone.count(self._order, self._order.turns_before(draw))
        return once + again - int(np.searchsorted(self._twice, draw))


@dataclass(frozen=True)
class FirstMet:
    """It has the samples of some draws, sorted by source and index, and the first epoch that each is met in there."""

    source: Integers
    index: Integers
    epoch: Integers

    @classmethod
    def of(cls, order: SampleOrder, ranges: Sequence[SampleRange]) -> "FirstMet":
        """It finds the samples of these ranges of draws."""
        found = order.locate(draws_of(ranges))
        by_sample = np.lexsort((found.epoch, found.index, found.source))
        source, index, epoch = (part[by_sample] for part in (found.source, found.index, found.epoch))
        new = np.ones(len(source), dtype=bool)
        new[1:] = (source[1:] != source[:-1]) | (index[1:] != index[:-1])
        return cls(source[new], index[new], epoch[new])

    def again(self, found: Draws) -> NDArray[np.bool_]:
        """It says of each of these draws whether its sample comes again there, in a later epoch than the first."""
        later = np.zeros(len(found.source), dtype=bool)
        for number in np.unique(self.source):
            mine = self.source == number
            place = np.searchsorted(self.index[mine], found.index).clip(max=mine.sum() - 1)
            same = (found.source == number) & (self.index[mine][place] == found.index)
            later |= same & (self.epoch[mine][place] < found.epoch)
        return later

    def count(self, order: SampleOrder, turns: Sequence[int]) -> int:
        """It counts how often the samples come again within so many turns of each source."""
        total = 0
        for number in np.unique(self.source).tolist():
            mine = self.source == number
            current, index, met = (
                turns[number] // order.sources[number].samples,
                self.index[mine],
                self.epoch[mine],
            )
            total += int((current - 1 - met).clip(min=0).sum())
            now = order.turns_of(number, current, index[met < current])
            total += int((now < turns[number]).sum())
        return total


def draws_of(ranges: Sequence[SampleRange]) -> Integers:
    """It returns the draws in these ranges, one by one."""
    return np.concatenate([np.arange(0), *(np.arange(start, end) for start, end in ranges)])
