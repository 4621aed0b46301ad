"""Finds the name that a misspelled one was meant to be."""

from collections.abc import Iterable
from difflib import SequenceMatcher

LEAST_SIMILARITY = 0.6
"""Twice the shared characters over all characters, as difflib's own default."""


def nearest(name: str, candidates: Iterable[str]) -> list[str]:
    """The candidates most similar to `name`: several when they tie, none when nothing is similar."""
    similarity = {known: SequenceMatcher(None, name, known).ratio() for known in candidates}
    best = max(similarity.values(), default=0.0)
    return [known for known, ratio in similarity.items() if ratio == best >= LEAST_SIMILARITY]
