"""What a task whose models continue text says about it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from data_pipeline.batches import Batch


class TextStream(ABC):
    """It turns tokens into text as they come."""

    @abstractmethod
    def add(self, token: int) -> str:
        """It returns the text that is certain with one more token: whole characters, maybe none yet."""

    @abstractmethod
    def end(self) -> str:
        """It returns what is left when no more tokens come."""


class TextCodec(ABC):
    """It turns text into the tokens of a causal model, which maps tokens (B, S) -> logits (B, S, vocabulary), and back.

    Such a model consists of layers that can be decoded (`pretrain.models.cache`).
    """

    window: int
    """Tokens that the model has seen at once in training."""
    end_of_text: int
    """The token between texts: the first one of a text follows from it, and behind the last one it is predicted."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """It returns the tokens of a text, without end-of-text. Raises DataError for what is no text."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """It returns the text of tokens. Raises DataError for tokens that there are not."""

    @abstractmethod
    def batches(self, tokens: Sequence[int], samples: int) -> Iterator[Batch]:
        """It yields the tokens of a text as batches of `samples` sequences, each token a target once."""

    @abstractmethod
    def stream(self) -> TextStream:
        """It returns what does the same token by token."""
