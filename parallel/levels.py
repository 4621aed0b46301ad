"""All ranks agree on small values over gloo, level by level, so that no rank waits for a ring of all of them.

A ring of n ranks hands a message on 2 (n - 1) times, one after another, however small it is, and has connections
between any two of them. Ranks are numbered by digits instead, one a level: those that differ in one digit alone are a
group, and what each group of a level agrees on goes into the next level. 4,096 ranks hand a message on 36 times instead
of 8,190, and each of them has 18 connections instead of 4,095.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from parallel.level_sizes import MOST_RANKS, level_sizes


@dataclass(frozen=True)
class Levels:
    """It holds this rank's group of each level, with ranks in order; the last digit's comes first."""

    groups: tuple[ProcessGroup, ...]

    @classmethod
    def over_world(cls, rank: int, world_size: int, timeout: timedelta, most: int = MOST_RANKS) -> "Levels":
        """Make the groups; every rank must call this."""
        groups, stride = [], 1
        for size in level_sizes(world_size, most):
            first = rank - rank // stride % size * stride
            groups.append(make_group(range(first, first + size * stride, stride), timeout, backend="gloo"))
            stride *= size
        return cls(tuple(groups))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """It sums a CPU tensor in place over all ranks, to the same bytes on each, and returns it."""
        for group in self.groups:
            dist.all_reduce(values, group=group)
        return values

    def gather(self, value: Any) -> list[Any]:
        """It returns the values of all ranks, by rank."""
        values = [value]
        for group in self.groups:
            found: list[Any] = [None] * group.size()
            dist.all_gather_object(found, values, group=group)
            values = [one for part in found for one in part]
        return values


def make_group(ranks: range | list[int], timeout: timedelta, backend: str | None = None) -> ProcessGroup:
    """It makes a group of these ranks, which all call it, as none of the others need do.

    With `new_group` of all ranks for every group each of them would wait for the whole world once a group, of which a
    mesh of thousands of ranks has thousands.
    """
    group: ProcessGroup = dist.new_group(
        list(ranks), timeout=timeout, backend=backend, use_local_synchronization=True
    )
    return group
