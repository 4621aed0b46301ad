"""What a corpus of speech lists, whatever its format: utterances, each with its audio and what is said."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_pipeline.errors import DataError
from data_pipeline.preparing.compression import opened_content
from data_pipeline.preparing.documents import text_runs
from data_pipeline.preparing.source_files import SourceFile, SourceFiles, opened_source
from data_pipeline.shown import shown
from data_pipeline.speech.audio import WHOLE, Span

NO_AUDIO = "has no audio"


@dataclass(frozen=True, slots=True)
class Utterance:
    """It is what one speaker says at a time."""

    name: str
    """For messages: the id where the corpus has ids, else the file."""
    place: str
    """Where it is listed, for messages."""
    audio: Path | None
    """None: it is listed without, or what would be it is not read."""
    text: str | None
    """None: it is listed without."""
    span: Span = WHOLE
    speaker: str | None = None
    """None: unknown."""
    lacking: str = NO_AUDIO
    """Why it has no audio, if it has none."""

    @property
    def group(self) -> str:
        """It is the speaker or, where that is unknown, the recording: what has one in common sounds alike."""
        return shown(f"speaker {self.speaker}" if self.speaker else f"recording {self.audio}")


class Corpus(Protocol):
    """It lists utterances, the same ones each time."""

    def utterances(self) -> Iterator[Utterance]:
        """It yields them in the order of the corpus. Raises DataError for a list that is not of its format, or that has
        an id twice."""
        ...


def listed_file(found: SourceFiles, path: str | Path) -> SourceFile:
    """It adds a file of a corpus to `found` and returns it. Raises DataError where it is missing or no file."""
    here = SourceFiles()
    here.add(str(path))
    if here.folders or len(here.files) != 1 or not here.files[0].named:
        raise DataError(f"{shown(path)}: is no file")
    found.add(str(path))
    return here.files[0]


def listed_lines(file: SourceFile) -> Iterator[tuple[str, str]]:
    """It yields the lines of a text, also a packed one, that hold anything, each with its place for messages.

    Raises DataError for what is no text, and for a file that changes meanwhile.
    """
    with opened_source(file) as raw:
        for run in text_runs(opened_content(file.path, raw), str(file.path)):
            if run.text.strip():
                yield run.name, run.text


def check_path(path: str) -> str:
    """It returns a path as a list of files names it. Raises ValueError where there can be no such file."""
    if not path or "\0" in path:
        raise ValueError("is empty or holds NUL characters, as no path does")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, as no path does") from None
    return path
