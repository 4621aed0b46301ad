"""Each data-parallel rank takes a share of every global batch, in micro-batches: as many on every rank."""

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import DataConfig
from data_pipeline.reading.buckets import Integers


class BatchShare:
    """It is one rank's share. Raises ValueError for a global batch that cannot be cut evenly."""

    def __init__(self, data: DataConfig, rank: int, size: int, by_cost: bool) -> None:
        if data.global_batch_size % (data.micro_batch_size * size):
            raise ValueError(
                f"global_batch_size {data.global_batch_size} is no multiple of micro_batch_size "
                f"{data.micro_batch_size} x {size} data-parallel ranks"
            )
        self._rank = rank
        self._size = size
        self._by_cost = by_cost
        self._count = data.global_batch_size // data.micro_batch_size
        """Micro-batches of all ranks."""

    def spread(self, samples: Integers) -> list[Integers]:
        """It returns this rank's micro-batches of a global batch: each rank takes every `size`-th sample."""
        return np.split(samples[self._rank :: self._size], self._count // self._size)

    def together(self, samples: Integers, lengths_NK: NDArray[np.int32]) -> list[Integers]:
        """It returns this rank's micro-batches of a global batch in which neighbours are alike, sorted by the first of
        their lengths: they come to lie in one micro-batch, and what follows it is read by the other ranks at the same
        time, so that they do not wait for the longest of all.

        That of the middle comes first, on rank 0, however many there are: probes look at the first one alone.
        """
        if self._by_cost:
            groups = np.split(samples, np.cumsum(counts_by_cost(lengths_NK[:, 0], self._count))[:-1])
        else:
            groups = np.split(samples, self._count)
        turn, rank = divmod(self._count // 2, self._size)
        numbers = np.roll(np.arange(self._count).reshape(-1, self._size), (-turn, -rank), axis=(0, 1))
        return [groups[number] for number in numbers[:, self._rank].tolist()]


def counts_by_cost(lengths_N: NDArray[np.int32], groups: int) -> list[int]:
    """It returns how many samples each of so many groups of neighbours has, one at least, so that the largest of all
    costs is as small as can be: what a group costs is its longest sample times their number.

    `lengths_N` rise, and are as many as the groups, or more.
    """
    falling = lengths_N[::-1].clip(min=1).tolist()
    most = falling[0] * -(-len(falling) // groups)  # no group costs more where all have about the same number
    limit = bisect_left(range(most), True, key=lambda limit: _filled(falling, groups, limit) is not None)
    return (_filled(falling, groups, limit) or [])[::-1]


def _filled(falling: list[int], groups: int, limit: int) -> list[int] | None:
    """It fills one group after the other up to a limit of its cost, from the longest sample on; none where samples are
    left over. One at least is kept for each group that follows."""
    counts, left = [], len(falling)
    for follow in reversed(range(groups)):
        counts.append(min(limit // falling[-left], left - follow))
        left -= counts[-1]
        if not counts[-1]:
            return None
    return None if left else counts
