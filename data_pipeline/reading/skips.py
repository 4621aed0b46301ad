"""What a stream leaves out: ranges of draws, and the samples of some of them in all later epochs.

A sample that has thrown a run once would throw it again when its epoch is over. So it is left out wherever it comes
again, however often. Where a range has more samples of a source than that can spare, they are left out there alone.
Which draws that makes follows from the order and the ranges, so the state of a stream holds ranges and no more.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.reading.order import Integers, SampleOrder, draws_at
from data_pipeline.reading.ranges import SampleRange, merge_ranges

SPARED = 0.5
"""At least this part of the samples of each source is never left out for good."""


@dataclass(frozen=True)
class _Known:
    """It is what is left out of the draws before `end`."""

    end: int
    ranges: tuple[SampleRange, ...]


class Skips:
    """It maps positions of a stream to draws, past what is left out. What is left out never changes."""

    def __init__(
        self, order: SampleOrder, ranges: Iterable[Sequence[int]] = (), for_good: Iterable[Sequence[int]] = ()
    ) -> None:
        """`ranges` are left out, and the samples of those `for_good`, which are among them, in later epochs as well."""
        self._order = order
        self.ranges = merge_ranges(ranges)
        self.for_good = merge_ranges(for_good)
        self._samples = first_met(order, self.for_good)
        self._known = _Known(0, ())

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
        gone = np.bincount(self._samples[:, 0], minlength=len(sources)).tolist()
        return all(
            count <= (1 - SPARED) * source.samples for count, source in zip(gone, sources, strict=True)
        )

    def draws_at(self, positions: Integers) -> Integers:
        """It returns the draws that stand at these positions."""
        draws = draws_at(positions, self._known.ranges)
        while (last := int(draws.max(initial=0))) >= self._known.end:
            draws = draws_at(positions, self._before(last + 1))
        return draws

    def left_out(self, draws: Integers) -> NDArray[np.bool_]:
        """It says of each of these draws whether it is left out."""
        ranges = self._before(int(draws.max(initial=0)) + 1)
        starts, ends = np.asarray(ranges, np.int64).reshape(-1, 2).T
        place = np.searchsorted(starts, draws, side="right")
        return draws < np.concatenate([[0], ends])[place]

    def _before(self, end: int) -> tuple[SampleRange, ...]:
        """It returns what is left out of the draws before `end`, and remembers that for twice as many."""
        if end > self._known.end:
            again = [(draw, draw + 1) for draws in self._again(2 * end) for draw in draws.tolist()]
            self._known = _Known(2 * end, merge_ranges([*self.ranges, *again]))
        return self._known.ranges

    def _again(self, end: int) -> Iterator[Integers]:
        """It yields the draws before `end` that samples which are left out for good come again at, by epoch."""
        for number, source in enumerate(self._order.sources):
            _, met, index = self._samples[self._samples[:, 0] == number].T
            epoch = int(met.min()) + 1 if len(met) else 0
            while len(met) and self._order.draws_of(number, np.array([epoch * source.samples]))[0] < end:
                turns = self._order.turns_of(number, epoch, index[met < epoch])
                draws = self._order.draws_of(number, turns)
                yield draws[draws < end]
                epoch += 1


def first_met(order: SampleOrder, ranges: Sequence[SampleRange]) -> Integers:
    """It returns (source, epoch, index) of every sample in these ranges, in the first epoch that they have it in."""
    draws = np.concatenate([np.arange(0), *(np.arange(start, end) for start, end in ranges)])
    found = order.locate(draws)
    rows = np.stack([found.source, found.epoch, found.index], axis=1)
    rows = rows[np.lexsort((rows[:, 1], rows[:, 2], rows[:, 0]))]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = (rows[1:, [0, 2]] != rows[:-1, [0, 2]]).any(axis=1)
    return rows[first]
