"""Skip lists hold half-open ranges of draws."""

from collections.abc import Iterable, Sequence

SampleRange = tuple[int, int]
"""Half-open range of draws."""


def merge_ranges(ranges: Iterable[Sequence[int]]) -> tuple[SampleRange, ...]:
    """It sorts half-open ranges, joins those that touch, and drops the empty ones.

    Raises ValueError for a range that starts below zero or ends before it starts.
    """
    merged: list[SampleRange] = []
    for start, end in sorted((int(start), int(end)) for start, end in ranges):
        if not 0 <= start <= end:
            raise ValueError(f"[{start}, {end}) is no range of draws: 0 <= start <= end must hold")
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return tuple(merged)
