"""Pure arithmetic says where layers are cut into pipeline stages, and tensors into shares of tensor-parallel ranks."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple


class Run(NamedTuple):
    """It is a run of indices along one dimension."""

    start: int
    length: int


def share_runs(stacked: Sequence[int], rank: int, size: int) -> list[Run]:
    """It returns what one of `size` ranks holds of a dimension along which blocks of these lengths are stacked: its
    share of each, in order.

    It raises ValueError where a block does not divide.
    """
    runs, first = [], 0
    for length in stacked:
        share, rest = divmod(length, size)
        if rest:
            raise ValueError(f"{length} rows or columns cannot be divided by {size} ranks")
        runs.append(Run(first + rank * share, share))
        first += length
    return runs


def partition_layers(costs: Sequence[int], stages: int) -> tuple[int, ...]:
    """It returns the boundaries of the stages in a list of layers with these costs, which are 0 for what is no block.

    They are `stages + 1` increasing indices; stage i owns the layers `[boundaries[i], boundaries[i + 1])`. The most
    that a stage costs is as little as can be, for all stages wait for the slowest; within that, stage after stage takes
    as many blocks as the least such maximum of those that are left allows. So blocks that are alike are spread evenly
    and the first stages take what does not divide, for the last one also computes head and loss. What precedes the
    blocks stays with the first stage, what follows a block with the stage of that block.
    It raises ValueError when there are fewer blocks than stages.
    """
    blocks = [index for index, cost in enumerate(costs) if cost]
    if not 1 <= stages <= len(blocks):
        raise ValueError(f"{len(blocks)} blocks cannot be cut into {stages} stages with a block in each")
    totals = [0, *accumulate(costs[index] for index in blocks)]
    firsts = [0]
    for left in range(stages, 1, -1):
        first = firsts[-1]
        fitting = _fitting(totals, first, _least_most(totals, first, left))
        firsts.append(min(fitting, len(blocks) - left + 1))
    return (0, *(blocks[first] for first in firsts[1:]), len(costs))


def _least_most(totals: Sequence[int], first: int, stages: int) -> int:
    """It returns the least that the costliest stage can cost, of so many for the blocks from `first` on.

    `totals[n]` is the cost of the first n blocks.
    """
    low, high = -(-(totals[-1] - totals[first]) // stages), totals[-1] - totals[first]
    while low < high:
        middle, block = (low + high) // 2, first
        for _ in range(stages):
            block = _fitting(totals, block, middle)
        low, high = (low, middle) if block == len(totals) - 1 else (middle + 1, high)
    return low


def _fitting(totals: Sequence[int], first: int, most: int) -> int:
    """It returns one past the last block that a stage holds which begins with `first` and costs at most so much."""
    return bisect_right(totals, totals[first] + most, lo=first) - 1
