"""This sub-word tokenizer is lossless: what was encoded is decoded to the same characters, whatever they are."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import sentencepiece

from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as, read_whole
from data_pipeline.shown import shown

TOKENIZER_FILE = "tokenizer.model"
"""What a tokenizer is called beside prepared data and in checkpoints."""

END_OF_TEXT = "<|endoftext|>"
"""Control piece between documents; the same characters in a text are encoded as plain text."""

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
"""How sentencepiece writes a space inside its pieces; in a text it must be spelled as bytes to survive."""

PROBE = "  two  spaces\tA\uff21\n\u2460 \U0001f43e "
"""Characters that a lossy tokenizer would fold, strip or replace."""

TRAINING_LINE = 2048
"""Characters that are handed to sentencepiece as one training sentence."""

LARGEST_VOCABULARY = 1 << 24
"""More pieces than texts that fit in memory can give; sentencepiece makes room for all that it is asked for, before it
looks at a text: a minute and gigabytes for 2^31."""


class Piece(NamedTuple):
    """It is what one id stands for."""

    text: str
    """With spaces where sentencepiece writes SPACE_MARK; of a byte such as `<0x0A>`."""
    score: float
    """Of two pairs of neighbours that can be merged, the one that makes the piece of the higher score is."""
    kind: Literal["text", "byte", "control"]


class Tokenizer:
    """It is a trained sentencepiece model, and picklable, so that worker processes can have it.

    Raises DataError when `model` is no such model or lacks the byte pieces that make it lossless.
    """

    def __init__(self, model: bytes, name: str = "tokenizer") -> None:
        self.model, self._name = model, name
        with parsed_as(DataError, f"{name}: not a sentencepiece model"):
            # Of nothing sentencepiece makes a processor that fails only later.
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model or b"\0")
            self._check()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """It reads a model file. Raises DataError when it cannot be read or is no lossless model."""
        try:
            return cls(read_whole(path), str(path))
        except OSError as error:
            raise DataError(f"{shown(path)}: cannot read the tokenizer: {error.strerror}") from error

    @classmethod
    def of_model(cls, companion: Callable[[str], bytes], name: str, vocabulary_size: int) -> "Tokenizer":
        """It reads the file that a model with a vocabulary of this size is used with; `companion` returns one by name.

        Raises DataError, also for a tokenizer of more ids: the model has no rows for those.
        """
        tokenizer = cls(companion(name), name)
        if tokenizer.vocabulary_size > vocabulary_size:
            raise DataError(
                f"{name}: has {tokenizer.vocabulary_size} ids, but the model's vocabulary has {vocabulary_size}; use "
                "the tokenizer that the model was trained with"
            )
        return tokenizer

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes]]:
        return Tokenizer, (self.model,)

    @property
    def vocabulary_size(self) -> int:
        """It is the number of ids, the control pieces included."""
        return self._processor.vocab_size()

    @property
    def end_of_text(self) -> int:
        """It is the id of the piece between documents."""
        return self._processor.piece_to_id(END_OF_TEXT)

    @cached_property
    def digest(self) -> str:
        """It is the SHA-256 of the model's bytes, in hexadecimal."""
        return hashlib.sha256(self.model).hexdigest()

    @cached_property
    def byte_lengths(self) -> list[int]:
        """These are the bytes of text that each id stands for; control pieces stand for none."""
        lengths = {"byte": 1, "control": 0}
        return [lengths.get(piece.kind, len(piece.text.encode())) for piece in self.pieces()]

    def encode(self, text: str) -> list[int]:
        """It returns the ids of `text`, without control pieces."""
        first, *rest = text.split(SPACE_MARK)
        with parsed_as(DataError, self._name):
            ids: list[int] = self._processor.encode(first)
            for part in rest:
                ids += self._space_mark
                ids += self._processor.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """It returns the text that `encode` was given. Raises DataError for ids that there are not."""
        with parsed_as(DataError, self._name):
            return str(self._processor.decode(list(ids)))

    def byte(self, token: int) -> int | None:
        """It returns the byte that an id stands for, as those do that spell characters without a piece of their own;
        none for all other ids. Raises DataError for ids that there are not."""
        with parsed_as(DataError, self._name):
            piece = self._processor.id_to_piece(token)
            return int(piece[3:5], 16) if self._processor.is_byte(token) else None

    def pieces(self) -> list[Piece]:
        """It returns what the ids stand for, in their order."""
        return [self._piece(number) for number in range(self.vocabulary_size)]

    def _piece(self, number: int) -> Piece:
        processor = self._processor
        text: str = processor.id_to_piece(number)
        if processor.is_byte(number):
            return Piece(text, processor.get_score(number), "byte")
        if processor.is_control(number) or processor.is_unknown(number) or processor.is_unused(number):
            return Piece(text, processor.get_score(number), "control")
        return Piece(text.replace(SPACE_MARK, " "), processor.get_score(number), "text")

    @cached_property
    def _space_mark(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]

    def _check(self) -> None:
        """It refuses a model that would lose characters or cannot separate documents."""
        if self._processor.piece_to_id(END_OF_TEXT) == self._processor.unk_id():
            raise DataError(
                f"{self._name}: has no control piece {END_OF_TEXT}; make one with `surefoot prepare text`"
            )
        if self.decode(self.encode(PROBE)) != PROBE:
            raise DataError(
                f"{self._name}: loses characters (spaces or rare letters do not survive a round trip); it needs "
                "byte fallback, the identity normalizer and no dummy prefix; `surefoot prepare` makes one"
            )


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
    """It trains byte-pair encoding on `texts`; the same texts give the same bytes.

    All texts are held in memory: sentencepiece does so too, and what goes wrong while they are read would be told by it
    as a fault of its own.

    Raises DataError when there is no text, or `vocabulary_size` is too small or too large for it.
    """
    lines = list(_training_lines(texts))
    if not lines:
        raise DataError("there is no text to train a tokenizer on")
    needed: dict[str, Any] = {"required_chars": SPACE_MARK} if _lacks_spaces(lines) else {}
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines if any(map(_is_sentence, lines)) else [" "]),
            model_writer=model,
            vocab_size=min(vocabulary_size, LARGEST_VOCABULARY),
            model_type="bpe",
            normalization_rule_name="identity",
            byte_fallback=True,
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=8 * TRAINING_LINE,
            control_symbols=[END_OF_TEXT],
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=4,
            minloglevel=2,
            # Where it is not needed it is not set: models of earlier versions stay the same, byte by byte.
            **needed,
        )
    except RuntimeError as error:
        raise DataError(_explain(str(error), vocabulary_size)) from error
    return Tokenizer(model.getvalue())


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), TRAINING_LINE):
            yield text[start : start + TRAINING_LINE].replace(SPACE_MARK, " ")


def _is_sentence(line: str) -> bool:
    """It tells whether sentencepiece, which strips line ends and knows no NUL, finds anything in a line."""
    return bool(line.strip("\r\n\0"))


def _lacks_spaces(lines: Sequence[str]) -> bool:
    """It tells whether sentencepiece, which leaves out the rarest 0.05 % of all characters, may leave out the space.

    Bytes do not stand for that one, so a space of a later text would be lost.
    """
    return sum(line.count(" ") for line in lines) < 0.001 * sum(map(len, lines))


def _explain(error: str, vocabulary_size: int) -> str:
    """It says what sentencepiece means, and a vocabulary size that works."""
    if largest := re.search(r"too high .* <= (\d+)", error):
        return f"vocabulary size {vocabulary_size} is too large for the text: at most {largest[1]} works"
    if smallest := re.search(r"smaller than required_chars. \d+ vs (\d+)", error):
        return f"vocabulary size {vocabulary_size} is too small for the text: at least {smallest[1]} works"
    if "sentences_.empty()" in error:
        return "there is no text to train a tokenizer on"
    return f"cannot train a tokenizer with vocabulary size {vocabulary_size}: {error}"
