"""What a task whose models translate says about it.

B  sources, S  tokens of the longest, D  hidden size
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn

from data_pipeline.batches import Batch
from parallel.pipeline import SequentialLayers
from pretrain.models.cache import EncoderStates
from pretrain.tasks.scores import Score


class Ends(NamedTuple):
    """They say where translations begin and end, in tokens."""

    begin: int
    """It stands before the first token."""
    end: int
    never: int
    """No translation has it, such as padding: the model was never asked what follows it."""
    longest: int
    """Tokens of the longest translation, its end included."""


class Translator(ABC):
    """It turns sentences into tokens of an encoder-decoder, and tokens into sentences.

    Such a model consists of layers that can be decoded (`pretrain.models.cache`).
    """

    ends: Ends
    longest_source: int
    """Tokens of the longest sentence that the model was trained for, end included."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """It returns the tokens of a source, its end included. Raises DataError for what is no text."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """It returns the sentence of a translation's tokens, whatever they are."""

    @abstractmethod
    def read(
        self, model: SequentialLayers, sources: Sequence[Sequence[int]]
    ) -> tuple[nn.ModuleList, EncoderStates]:
        """It has the encoder read sources, and returns the layers of the decoder, and what they ask."""

    @abstractmethod
    def batches(self, source: str, target: str, samples: int) -> Iterator[Batch]:
        """It yields the lines of a file and those of its translation as batches of `samples` pairs.

        Raises DataError for files that cannot be read or are no translations line by line, and for a pair that is
        longer than the model was trained for.
        """

    @abstractmethod
    def pairs(self, batch: Batch) -> list[tuple[list[int], str]]:
        """It returns the tokens of the sources of a batch, their ends included and none of an empty line, and the
        translations as text; without samples that are damaged."""

    @abstractmethod
    def scores(self, translations: Sequence[str], references: Sequence[str]) -> tuple[Score, ...]:
        """It compares translations with those of people, one for each."""
