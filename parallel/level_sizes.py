"""How many ranks agree with each other at a time; see `parallel.levels`."""

MOST_RANKS = 4
"""A level has no more, unless their number has no such divisor. With two each message is handed on least often, but
each level costs a collective."""


def level_sizes(count: int, most: int = MOST_RANKS) -> list[int]:
    """It returns how many ranks the groups of each level have; their product is the number of ranks.

    A level takes the largest divisor up to `most`. Without one, as a large prime has none, it takes all that is left.
    """
    sizes = []
    while count > 1:
        sizes.append(max((size for size in range(2, most + 1) if count % size == 0), default=count))
        count //= sizes[-1]
    return sizes


def hops(count: int) -> int:
    """It returns how often a small message is handed on, one time after another, until so many ranks agree."""
    return sum(2 * (size - 1) for size in level_sizes(count))
