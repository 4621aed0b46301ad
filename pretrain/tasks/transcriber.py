"""What a task whose models transcribe speech says about it.

B  recordings in a batch
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from data_pipeline.batches import Batch
from pretrain.tasks.scores import Score


@dataclass(frozen=True)
class Decoding:
    """It says how transcripts are found in what a model says."""

    beam: int = 16
    """Beginnings that are kept side by side; 1: what is likeliest at each time (greedy)."""
    language_model: Path | None = None
    """Of words; none: the model of speech alone decides."""
    language_weight: float = 0.5
    """What a logarithm of the language model counts in one of the model of speech."""
    word_bonus: float = 1.5
    """What is added for each word, in nats: the language model prefers few."""


@dataclass(frozen=True)
class Recording:
    """It is audio as a model hears it."""

    heard: Tensor
    """Numbers by time, from the beginning to the end."""
    seconds: float


class TimedUnit(NamedTuple):
    """It is a unit of a transcript, and when it was said."""

    text: str
    start: float
    """Seconds from the beginning."""
    end: float


@dataclass(frozen=True)
class Transcript:
    """It is what a recording says."""

    text: str
    units: tuple[TimedUnit, ...]
    log_probability: float
    """Of the model of speech, in nats."""
    score: float
    """What transcripts were compared by: with what the language model adds."""


class Transcriber(ABC):
    """It takes audio to what a model reads, and what the model says to text."""

    longest_seconds: float
    """Of the longest recording that the model was trained for."""

    @abstractmethod
    def read(self, path: Path) -> Recording:
        """It reads an audio file. Raises DataError, which names it, for what is none or too long."""

    @abstractmethod
    def inputs(self, recordings: Sequence[Recording]) -> tuple[Tensor, ...]:
        """It returns what feeds the first layer for recordings together."""

    @abstractmethod
    def transcripts(self, outputs: Any, inputs: tuple[Tensor, ...]) -> list[Transcript]:
        """It decodes the outputs of the last layer, (B,) transcripts, none of which depends on the others.

        Raises CheckpointError where the outputs are no numbers.
        """

    @abstractmethod
    def references(self, batch: Batch) -> list[str | None]:
        """It returns what was said in a batch of prepared data, (B,); none for samples that do not count."""

    @abstractmethod
    def scores(self, hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Score, ...]:
        """It compares transcripts with references, one for each."""

    @abstractmethod
    def alignment(self, name: str, hypothesis: str, reference: str) -> str:
        """It returns the two of an utterance word below word, as lines, and how many errors there are."""
