"""Weights of a mixture become draws: how many of a cycle each source has. Plans are checked with it, so no torch."""

from collections.abc import Sequence

CYCLE = 1000
"""Draws in which a mixture keeps to its weights exactly, so a weight is resolved to a thousandth."""


def apportion(weights: Sequence[float], total: int, whole: float | None = None) -> tuple[int, ...]:
    """It splits `total` by weight into whole numbers: floors, then by largest remainder, ties to the first.

    `whole` is the sum of the weights as the caller has rounded it.
    """
    whole = sum(weights) if whole is None else whole
    shares = [weight / whole * total for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda number: counts[number] - shares[number])
    for number in by_remainder[: total - sum(counts)]:
        counts[number] += 1
    return tuple(counts)


def least_weight(weights: Sequence[float]) -> float | None:
    """It returns a weight of two digits that is enough for every source without a draw; none where none is: where
    there are too many sources, or others would then be left without."""
    counts = apportion(weights, CYCLE)
    others = sum(weight for weight, count in zip(weights, counts, strict=True) if count)
    least = others / max(CYCLE - counts.count(0), 1)  # a thousandth of the sum that comes of it
    enough = float(f"{least * 1.06:.2g}")  # two digits may be 5 % too few
    raised = [weight if count else enough for weight, count in zip(weights, counts, strict=True)]
    return None if 0 in apportion(raised, CYCLE) else enough
