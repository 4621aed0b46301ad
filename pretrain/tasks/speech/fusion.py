"""A language model of words takes part in a search over units (shallow fusion).

A word is what stands between white space in the text of units. It is scored when a unit comes that begins with white
space: a space among characters, a piece such as ` the` among pieces of sentencepiece; the last one at the end. So a
word costs nothing until it is whole, and in the end all have been scored as the sentence that they are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class LanguageModel(Protocol):
    """It knows how likely a word is behind others, in nats; a state stands for these."""

    def begin(self) -> Any:
        """It returns the state at the beginning of a sentence."""

    def word(self, state: Any, word: str) -> tuple[Any, float]:
        """It returns the state behind a word, and the log-probability of the word."""

    def end(self, state: Any) -> float:
        """It returns the log-probability of the end of the sentence."""


class Words(NamedTuple):
    """They are whole words that have been scored."""

    state: Any
    score: float


class Fusion:
    """It adds `weight` times the log-probability of each word, and `bonus`, since a language model prefers few."""

    def __init__(
        self,
        model: LanguageModel,
        weight: float,
        bonus: float,
        vocabulary: int,
        text: Callable[[Sequence[int]], str],
    ) -> None:
        """`text` is that of any ids below `vocabulary`."""
        self._model, self._weight, self._bonus, self._text = model, weight, bonus, text
        self.closes_V = np.array([text([unit])[:1].isspace() for unit in range(vocabulary)])
        """The units that come behind a whole word."""

    def begin(self) -> Words:
        """It begins an utterance."""
        return Words(self._model.begin(), 0.0)

    def close(self, words: Words, units: Sequence[int]) -> Words:
        """It scores the units behind words as one more, or as none where they are white space."""
        state, score = words
        for word in self._text(units).split():
            state, log_probability = self._model.word(state, word)
            score += self._weight * log_probability + self._bonus
        return Words(state, score)

    def end(self, words: Words) -> float:
        """It returns the score of a whole utterance."""
        return words.score + self._weight * self._model.end(words.state)
