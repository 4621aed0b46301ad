"""A GPT reads and writes text with the tokenizer that its data was made with."""

from collections.abc import Iterator, Sequence

from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.passage import passage_batches
from data_pipeline.text.streaming import StreamedText
from data_pipeline.text.tokenizer import Tokenizer
from pretrain.tasks.text import TextCodec, TextStream


class StreamedTokens(StreamedText, TextStream):
    """It turns tokens into text as they come."""


class TokenizedText(TextCodec):
    """It is the text of a sub-word tokenizer."""

    def __init__(self, tokenizer: Tokenizer, window: int) -> None:
        self.window = window
        self.end_of_text = tokenizer.end_of_text
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """It returns the tokens of a text, without end-of-text."""
        return self._tokenizer.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """It returns the text of tokens."""
        return self._tokenizer.decode(tokens)

    def batches(self, tokens: Sequence[int], samples: int) -> Iterator[TokenBatch]:
        """It yields sequences of the model's window."""
        return passage_batches(tokens, self.end_of_text, self.window, samples)

    def stream(self) -> TextStream:
        """It returns what does the same token by token."""
        return StreamedTokens(self._tokenizer)
