"""An encoder-decoder reads and writes sentences with the tokenizers that its data was made with."""

from collections.abc import Callable, Sequence
from itertools import takewhile

from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.translation.source import SOURCE_TOKENIZER, TARGET_TOKENIZER


class PairCodec:
    """It turns sentences of the source into ids, and ids of the target into sentences.

    Both tokenizers are lossless: what data was made of comes back character by character, nothing is normalised.
    """

    def __init__(self, companion: Callable[[str], bytes]) -> None:
        """`companion` returns a tokenizer by its name in checkpoints. Raises DataError for what is none."""
        self._source, self._target = (
            Tokenizer(companion(name), name) for name in (SOURCE_TOKENIZER, TARGET_TOKENIZER)
        )
        self.end_of_text = self._target.end_of_text
        """It begins what the decoder reads, and ends what it says."""
        self._spells = [length > 0 for length in self._target.byte_lengths]

    def encode(self, text: str) -> list[int]:
        """It returns the ids of a source with the end of text behind them, as the encoder reads them. Raises DataError
        for what is no text."""
        return [*self._source.encode(text), self._source.end_of_text]

    def encode_target(self, text: str) -> list[int]:
        """It returns the ids of a target, which the decoder is to say, the end of text behind them. Raises DataError
        for what is no text."""
        return [*self._target.encode(text), self.end_of_text]

    def is_blank(self, ids: Sequence[int]) -> bool:
        """It tells whether a source, given as `encode` returns it, has no text or white space alone."""
        return not self._source.decode(ids[:-1]).strip()

    def decode(self, ids: Sequence[int]) -> str:
        """It returns the sentence up to the first end of text, if there is one, whatever a model has said.

        Ids that stand for no text are left out, and bytes that make no character become the replacement character.
        """
        said = takewhile(lambda token: token != self.end_of_text, ids)
        return self._target.decode([t for t in said if 0 <= t < len(self._spells) and self._spells[t]])
