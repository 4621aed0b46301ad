"""Utterances become what is stored of them: audio in one form, and the units of what is said."""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_pipeline.preparing.source_files import LeftOut
from data_pipeline.speech.audio import AudioForm, AudioRefused, encode_flac, read_audio
from data_pipeline.speech.config import most_units
from data_pipeline.speech.corpora.utterance import Utterance
from data_pipeline.speech.units import Units

STORED_UNITS = np.dtype("<u2")
"""Type of stored ids."""


class TranscriptRefused(Exception):
    """A transcript cannot be used. The message is the reason, in the words of all of its kind; `detail` is about this
    one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


@dataclass(frozen=True)
class Spelling:
    """It says what becomes of transcripts before they are cut into units."""

    lowercase: bool = False

    def of(self, text: str | None) -> str:
        """It returns a transcript in NFC, with single spaces. Raises TranscriptRefused where there is none."""
        spelled = " ".join(unicodedata.normalize("NFC", text or "").split())
        if not spelled:
            raise TranscriptRefused("has no transcript")
        if any(unicodedata.category(char) in ("Cs", "Cc") for char in spelled):
            raise TranscriptRefused("has a transcript with control characters or halves of surrogate pairs")
        return unicodedata.normalize("NFC", spelled.lower()) if self.lowercase else spelled


@dataclass(frozen=True)
class Encoded:
    """It is an utterance as it is stored."""

    flac: bytes = field(repr=False)
    units: NDArray[np.uint16]
    samples: int
    """Of audio."""
    changes: tuple[str, ...]
    """What was done to the audio."""

    @property
    def digest(self) -> bytes:
        """It is the same for the same audio with the same units, and for nothing else."""
        return hashlib.blake2b(self.flac + self.units.astype(STORED_UNITS).tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class Encoding:
    """It encodes utterances, in whatever process."""

    form: AudioForm
    spelling: Spelling
    units: Units
    frame_seconds: float

    def __call__(self, utterances: Sequence[Utterance]) -> list[Encoded | LeftOut]:
        """It returns for each what is stored, or why that is nothing. Raises DataError where files cannot be read
        now."""
        return [self._encoded(utterance) for utterance in utterances]

    def _encoded(self, utterance: Utterance) -> Encoded | LeftOut:
        try:
            if utterance.audio is None:
                raise AudioRefused(utterance.lacking)
            units = self._units(utterance)
            audio = read_audio(utterance.audio, self.form, utterance.span)
            self._check_alignable(units, len(audio.samples_N))
        except (AudioRefused, TranscriptRefused) as error:
            said = f": {error.detail}" if error.detail else ""
            return LeftOut(f"{utterance.name} ({utterance.place}{said})", str(error))
        flac = encode_flac(audio.samples_N, self.form.sample_rate)
        return Encoded(flac, units, len(audio.samples_N), audio.changes)

    def _units(self, utterance: Utterance) -> NDArray[np.uint16]:
        text = self.spelling.of(utterance.text)
        try:
            return np.array(self.units.encode(text), np.uint16)
        except ValueError as error:
            raise TranscriptRefused(*str(error).split(": ", 1)) from error

    def _check_alignable(self, units: NDArray[np.uint16], samples: int) -> None:
        """It raises TranscriptRefused where no alignment has room for the units and the blanks between equal ones."""
        needed = len(units) + sum(one == other for one, other in pairwise(units.tolist()))
        if needed > most_units(samples, self.form.sample_rate, self.frame_seconds):
            raise TranscriptRefused(
                f"is too short for its transcript, with {self.frame_seconds:g} s a unit or blank between equal ones"
            )
