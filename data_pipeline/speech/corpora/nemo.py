"""Manifests as NVIDIA NeMo reads them: JSON lines, each with the file of an utterance and what is said.

{"audio_filepath": "wav/1.wav", "duration": 2.5, "text": "one two", "offset": 0.0, "speaker": "a"}
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from data_pipeline.errors import DataError
from data_pipeline.parsing import parse_json, parsed_as
from data_pipeline.preparing.source_files import SourceFiles
from data_pipeline.shown import shown
from data_pipeline.speech.audio import Span
from data_pipeline.speech.corpora.utterance import Utterance, check_path, listed_file, listed_lines

ListedPath = Annotated[str, AfterValidator(check_path)]


class _Line(BaseModel):
    """These are the keys that are read; others are not."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    audio_filepath: ListedPath
    text: str | None = None
    offset: float | None = Field(default=None, ge=0)
    duration: float | None = Field(default=None, gt=0)
    speaker: str | int | None = None


class NemoManifest:
    """It is one such file; paths in it are relative to its folder.

    Raises DataError where there is no such file.
    """

    def __init__(self, path: str, found: SourceFiles) -> None:
        self._file = listed_file(found, path)

    def utterances(self) -> Iterator[Utterance]:
        """It yields an utterance for each line. Raises DataError for a line that is none."""
        folder = self._file.path.absolute().parent
        for place, text in listed_lines(self._file):
            line = parsed_line(text, place)
            yield Utterance(
                name=shown(line.audio_filepath),
                place=place,
                audio=folder / line.audio_filepath,
                text=line.text,
                span=Span(line.offset or 0.0, line.duration),
                speaker=None if line.speaker in (None, "") else str(line.speaker),
            )


def parsed_line(text: str, place: str) -> _Line:
    """It reads a line. Raises DataError for one that is none of a manifest."""
    with parsed_as(DataError, place):
        return _Line.model_validate(parse_json(text))
