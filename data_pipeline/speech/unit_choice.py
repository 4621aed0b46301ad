"""The units of transcripts are taken from a file, or chosen by the transcripts of the train split."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as, read_whole
from data_pipeline.shards.storage import data_errors
from data_pipeline.shown import shown
from data_pipeline.speech.units import (
    CHARACTERS_FILE,
    PIECES_FILE,
    CharacterUnits,
    PieceUnits,
    Units,
    parse_units,
)
from data_pipeline.text.prepare import TRAINING_BYTES, fraction
from data_pipeline.text.tokenizer import train_tokenizer


@dataclass(frozen=True)
class UnitChoice:
    """It says how units are chosen."""

    kind: Literal["characters", "pieces"] | Path = "characters"
    """Or a file of units, as lies beside prepared data, or a tokenizer."""
    alphabet: str = ""
    """Characters that there are; none: those of the transcripts."""
    vocabulary_size: int = 1024
    """Pieces that a tokenizer is trained for."""

    def deciding(self) -> dict[str, Any]:
        """It returns what decides the units, beside the transcripts. Raises DataError where the file is none."""
        if isinstance(self.kind, Path):
            return {"digest": _read(self.kind).digest}
        if self.kind == "pieces":
            return {"pieces": self.vocabulary_size}
        return {"characters": self.alphabet}

    def of(self, texts: Iterable[str]) -> Units:
        """It returns the units for transcripts; all of them are looked at, whether they decide anything or not.

        Raises DataError where there are none, or none that can have such units.
        """
        if isinstance(self.kind, Path):
            deque(texts, maxlen=0)
            return _read(self.kind)
        if self.kind == "pieces":
            return PieceUnits(train_tokenizer(_spread(texts), self.vocabulary_size))
        found = {char for text in texts for char in text}
        with parsed_as(DataError, "the characters of the transcripts"):
            return CharacterUnits(sorted({*self.alphabet} or found))


def _read(path: Path) -> Units:
    """It reads a file of units, of whichever kind it is."""
    with data_errors(path):
        content = read_whole(path)
    file = CHARACTERS_FILE if content.lstrip().startswith(b"{") else PIECES_FILE
    return parse_units(file, content, shown(path))


def _spread(texts: Iterable[str]) -> list[str]:
    """It returns texts to train a tokenizer on: all or, where they are many, an evenly spread part of them."""
    kept: list[str] = []
    size, share = 0, 1.0
    for text in texts:
        if fraction("tokenizer", text) < share:
            kept.append(text)
            size += len(text.encode())
        while size > TRAINING_BYTES:
            share /= 2
            kept = [text for text in kept if fraction("tokenizer", text) < share]
            size = sum(len(text.encode()) for text in kept)
    return kept
