"""Ids become text as they come, whole characters alone."""

from data_pipeline.text.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StreamedText:
    """It gives the text of ids one by one. A character that is spelled in bytes comes with its last one; bytes that
    spell none become replacement characters, one each. Together that is what `Tokenizer.decode` makes of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending = b""
        """Bytes that may be the beginning of a character."""

    def add(self, token: int) -> str:
        """It returns the text that is certain with one more id, maybe none yet.

        Raises:
            DataError: there is no such id.
        """
        byte = self._tokenizer.byte(token)
        if byte is None:
            return self.end() + self._tokenizer.decode([token])
        self._pending += bytes([byte])
        return self._certain()

    def end(self) -> str:
        """It returns what is left when no more ids come."""
        left, self._pending = len(self._pending), b""
        return REPLACEMENT * left

    def _certain(self) -> str:
        text = ""
        while True:
            try:
                text, self._pending = text + self._pending.decode(), b""
                return text
            except UnicodeDecodeError as error:
                text += self._pending[: error.start].decode()
                self._pending = self._pending[error.start :]
                if error.reason == "unexpected end of data":
                    return text
                text, self._pending = text + REPLACEMENT, self._pending[1:]
