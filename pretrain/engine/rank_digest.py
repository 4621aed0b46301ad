"""A sum over the ranks that is taken anyway tells whether all of them hold the same 64 bits.

The bits travel as chunks h of 16, each with its square. Cauchy-Schwarz: n sum(h^2) >= (sum h)^2, equal only where all
h are. Sums are exact in float64 up to 2^20 ranks.
"""

from collections.abc import Sequence

CHUNKS = 4
_BITS = 16
SLOTS = 2 * CHUNKS


def slots_of(digest: int) -> list[float]:
    """It returns this rank's contribution: chunks of the low 64 bits of `digest`, then their squares."""
    chunks = [digest >> shift & 0xFFFF for shift in range(0, CHUNKS * _BITS, _BITS)]
    return [float(chunk) for chunk in chunks] + [float(chunk**2) for chunk in chunks]


def unanimous(sums: Sequence[float], ranks: int) -> bool:
    """It tells whether the contributions of all ranks, summed, were of equal digests."""
    pairs = zip(sums[:CHUNKS], sums[CHUNKS:], strict=True)
    return all(ranks * int(squares) == int(total) ** 2 for total, squares in pairs)
