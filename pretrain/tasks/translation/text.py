"""An encoder-decoder reads and writes sentences with the tokenizers that its data was made with."""

from collections.abc import Callable, Sequence
from itertools import takewhile

from data_pipeline.text.tokenizer import Tokenizer
from data_pipeline.translation.source import SOURCE_TOKENIZER, TARGET_TOKENIZER


class PairCodec:
    """It turns sentences of the source into ids, and ids of either side into sentences.

    Both tokenizers are lossless: what data was made of comes back character by character, nothing is normalised.
    """

    def __init__(self, companion: Callable[[str], bytes], sizes: tuple[int, int]) -> None:
        """`companion` returns a tokenizer by its name in checkpoints; `sizes` are those of the model's vocabularies.

        Raises DataError for what is none, or has more ids than the model.
        """
        self._source, self._target = (
            _Side(Tokenizer.of_model(companion, name, size))
            for name, size in zip((SOURCE_TOKENIZER, TARGET_TOKENIZER), sizes, strict=True)
        )
        self.end_of_text = self._target.tokenizer.end_of_text
        """It begins what the decoder reads, and ends what it says."""

    def encode(self, text: str) -> list[int]:
        """It returns the ids of a source with the end of text behind them, as the encoder reads them. Raises DataError
        for what is no text."""
        return self._source.encode(text)

    def encode_target(self, text: str) -> list[int]:
        """It returns the ids of a target, which the decoder is to say, the end of text behind them. Raises DataError
        for what is no text."""
        return self._target.encode(text)

    def is_blank(self, ids: Sequence[int]) -> bool:
        """It tells whether a source, given as `encode` returns it, has no text or white space alone."""
        return not self._source.decode(ids[:-1]).strip()

    def decode(self, ids: Sequence[int]) -> str:
        """It returns the sentence of the target up to its first end of text, if there is one, whatever a model says.

        Ids that stand for no text are left out, and bytes that make no character become the replacement character.
        """
        return self._target.decode(ids)

    def decode_source(self, ids: Sequence[int]) -> str:
        """It does the same for the source."""
        return self._source.decode(ids)


class _Side:
    """It is one side of a pair."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._spells = [length > 0 for length in tokenizer.byte_lengths]
        """Of each id, whether it stands for text."""

    def encode(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text), self.tokenizer.end_of_text]

    def decode(self, ids: Sequence[int]) -> str:
        said = takewhile(lambda token: token != self.tokenizer.end_of_text, ids)
        return self.tokenizer.decode([t for t in said if 0 <= t < len(self._spells) and self._spells[t]])
