"""Units are what transcripts are made of: characters, or pieces of sentencepiece. Each has an id; 0 is the blank."""

import hashlib
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from data_pipeline.errors import DataError
from data_pipeline.parsing import parse_json, parsed_as
from data_pipeline.shown import shown
from data_pipeline.text.tokenizer import Tokenizer

BLANK = 0
"""The id that stands for no unit in what a model says (CTC's blank); in transcripts it is padding."""

CHARACTERS_FILE: Literal["units.json"] = "units.json"
PIECES_FILE: Literal["units.model"] = "units.model"
UNITS_FILES = (CHARACTERS_FILE, PIECES_FILE)
"""What the file of the units is called, beside prepared data and in checkpoints: the name says which kind they are."""

LARGEST_COUNT = 1 << 16
"""Ids that two bytes hold."""

UnitsFile = Literal["units.json", "units.model"]


class Units(ABC):
    """They take transcripts to ids and back; picklable, so that worker processes can have them."""

    file: ClassVar[UnitsFile]

    @property
    @abstractmethod
    def content(self) -> bytes:
        """It is what the file holds."""

    @property
    @abstractmethod
    def count(self) -> int:
        """It counts the ids, that of the blank included."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """It returns the ids of a text, never the blank. Raises ValueError, which names the characters that are outside
        the units."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """It returns the text of ids, blanks and ids that there are not left out; neighbours that are equal stay."""

    @cached_property
    def digest(self) -> str:
        """It is the SHA-256 of `content`, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()


def _checked(characters: tuple[str, ...]) -> tuple[str, ...]:
    blank, *others = characters
    if blank:
        raise ValueError(f"the first is the blank, which is written as no character, not {shown(blank)!r}")
    if odd := next((char for char in others if len(char) != 1 or unicodedata.category(char) == "Cs"), None):
        raise ValueError(f"{shown(odd)!r} is not one character")
    if "" in others or len({*others}) < len(others):
        raise ValueError("characters must differ from each other and from the blank")
    return characters


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    characters: Annotated[
        tuple[str, ...], Field(min_length=2, max_length=LARGEST_COUNT), AfterValidator(_checked)
    ]


class CharacterUnits(Units):
    """They are single characters (code points); ids are their places in a list, whose first entry is the blank."""

    file = CHARACTERS_FILE

    def __init__(self, characters: Iterable[str]) -> None:
        """`characters` are those of ids 1, 2, ...

        Raises ValueError where there are none or too many, for one that stands there twice, and for what is not a
        single character.
        """
        self._document = _Document(characters=("", *characters))
        self._ids = {char: number for number, char in enumerate(self._document.characters) if char}

    @classmethod
    def parse(cls, content: bytes, name: str = CHARACTERS_FILE) -> "CharacterUnits":
        """It reads the content of a file. Raises DataError where it is none of characters."""
        with parsed_as(DataError, f"{name}: no units of transcripts"):
            parse_json(content)  # which is stricter than pydantic's parser
            return cls(_Document.model_validate_json(content, strict=True).characters[1:])

    @property
    def characters(self) -> tuple[str, ...]:
        """They are in the order of their ids, from 1 on."""
        return self._document.characters[1:]

    @cached_property
    def content(self) -> bytes:
        """It is JSON."""
        return f"{json.dumps(self._document.model_dump(), ensure_ascii=False)}\n".encode()

    @property
    def count(self) -> int:
        """It is one more than there are characters."""
        return len(self._document.characters)

    def encode(self, text: str) -> list[int]:
        """It returns an id for each character."""
        try:
            return [self._ids[char] for char in text]
        except KeyError:
            outside = dict.fromkeys(char for char in text if char not in self._ids)
            listed = ", ".join(f"{shown(char)!r}" for char in outside)
            raise ValueError(f"has characters that are no units: {listed}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """It returns the characters in a row."""
        known = self._document.characters
        return "".join(known[number] for number in ids if 0 <= number < len(known))


class PieceUnits(Units):
    """They are the pieces of a tokenizer, in which any text can be spelled; its unknown piece, id 0, is the blank."""

    file = PIECES_FILE

    def __init__(self, tokenizer: Tokenizer, name: str = PIECES_FILE) -> None:
        """Raises DataError for a tokenizer in which another id stands for what is unknown, or of too many ids."""
        self._tokenizer = tokenizer
        first, *_ = pieces = tokenizer.pieces()
        if first.kind != "control":
            raise DataError(
                f"{name}: its id {BLANK} is the piece {shown(first.text)!r}, but stands for the blank here; take a "
                "tokenizer that `surefoot prepare` made"
            )
        if len(pieces) > LARGEST_COUNT:
            raise DataError(
                f"{name}: has {len(pieces)} ids, and transcripts are stored with {LARGEST_COUNT} at most; take a "
                "smaller tokenizer"
            )
        self._silent = {number for number, piece in enumerate(pieces) if piece.kind == "control"}

    @classmethod
    def parse(cls, content: bytes, name: str = PIECES_FILE) -> "PieceUnits":
        """It reads the content of a file. Raises DataError where it is no tokenizer whose pieces can be units."""
        return cls(Tokenizer(content, name), name)

    @property
    def content(self) -> bytes:
        """It is the model of sentencepiece."""
        return self._tokenizer.model

    @property
    def count(self) -> int:
        """It counts pieces for text, bytes and control."""
        return self._tokenizer.vocabulary_size

    def encode(self, text: str) -> list[int]:
        """It returns the ids of pieces; of characters without one, those of their bytes."""
        with parsed_as(ValueError, "the transcript"):
            return self._tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """It returns what the pieces spell."""
        return self._tokenizer.decode(
            [number for number in ids if 0 <= number < self.count and number not in self._silent]
        )


def parse_units(file: UnitsFile, content: bytes, name: str = "") -> Units:
    """It reads the content of a file of units; `name` says in messages where that is. Raises DataError where it is
    none."""
    kind = CharacterUnits if file == CHARACTERS_FILE else PieceUnits
    return kind.parse(content, name or file)


def read_units(companion: Callable[[str], bytes]) -> Units:
    """It returns the units that go with a model or with data: `companion` returns a file of these by its name, and
    raises where there is none. Raises DataError where it has none of UNITS_FILES, or what is there is none."""
    missing = []
    for file in (CHARACTERS_FILE, PIECES_FILE):
        try:
            content = companion(file)
        except Exception as error:  # of the room that has the files, which is not known here
            missing.append(str(error))
            continue
        return parse_units(file, content)
    raise DataError(f"no units of transcripts: {'; '.join(missing)}")
