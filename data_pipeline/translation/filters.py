"""Pairs that teach nothing, or cannot be read, are left out here, each for a reason that is counted."""

import hashlib
from collections import Counter
from dataclasses import dataclass

EMPTY = "a side is empty"
COPY = "copy of an earlier pair"
UNTRANSLATED = "target equal to source"
TOO_LONG = "longer than --max-length"
UNEVEN = "lengths beyond --max-ratio"


@dataclass(frozen=True)
class Limits:
    """It says what pairs are kept, beside that neither side is empty."""

    max_length: int | None
    """Tokens of either side, the end of text included."""
    max_ratio: float | None
    """Tokens of the longer side over those of the shorter."""
    drop_copies: bool
    drop_untranslated: bool


class Filter:
    """It decides about the pairs of one split, in their order, and counts what is left out by reason."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._seen: set[bytes] = set()
        self.left_out: Counter[str] = Counter()

    def keeps_text(self, source: str, target: str, count: int = 1) -> bool:
        """It decides about `count` pairs by the text alone."""
        return self._kept(self._fault_of_text(source.strip(), target.strip()), count)

    def keeps_lengths(self, source: int, target: int) -> bool:
        """It decides by the tokens of both sides, of what was kept for its text."""
        limits, (shorter, longer) = self._limits, sorted((source, target))
        if limits.max_length is not None and longer > limits.max_length:
            return self._kept(TOO_LONG)
        return self._kept(
            UNEVEN if limits.max_ratio is not None and longer > limits.max_ratio * shorter else None
        )

    def _fault_of_text(self, source: str, target: str) -> str | None:
        if not source or not target:
            return EMPTY
        if self._limits.drop_untranslated and source == target:
            return UNTRANSLATED
        if self._limits.drop_copies:
            # With its length, for a source may hold any character that would stand between the two.
            key = hashlib.blake2b(f"{len(source)} {source}{target}".encode(), digest_size=16).digest()
            if key in self._seen:
                return COPY
            self._seen.add(key)
        return None

    def _kept(self, fault: str | None, count: int = 1) -> bool:
        if fault:
            self.left_out[fault] += count
        return fault is None
