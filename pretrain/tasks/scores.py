"""What a task says of how good its predictions are, compared with references."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_pipeline.batches import Batch


@dataclass(frozen=True)
class Score:
    """It is one metric of a corpus."""

    name: str
    """As keys have it: `bleu`, `wer`."""
    value: float
    signature: str
    """How it was computed: scores of other signatures are no scores to compare with."""
    line: str
    """All of it in one line."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What the value follows from, where that is counted."""


class Scoring(ABC):
    """It scores what a model makes of the batches that it is evaluated on."""

    @abstractmethod
    def add(self, batch: Batch, outputs: Any) -> None:
        """It takes in a batch, and the outputs of the last layer for it."""

    @abstractmethod
    def scores(self) -> Sequence[Score]:
        """It returns the scores of all batches so far; none where there was nothing to score."""

    def alignments(self, names: Sequence[str]) -> Iterator[str]:
        """It yields predictions beside what was said, as lines; `names` are those of all rows so far. Here there are
        none."""
        yield from ()
