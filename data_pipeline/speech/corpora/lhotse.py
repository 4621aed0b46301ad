"""Manifests of cuts as lhotse writes them (JSON lines): simple ones, of one channel of a recording in a file, with one
supervision. What else a cut can be is refused by its name.

An utterance is heard where the supervision lies, whose times are those of the cut.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.errors import DataError
from data_pipeline.parsing import parse_json, parsed_as
from data_pipeline.preparing.source_files import SourceFiles
from data_pipeline.shown import shown
from data_pipeline.speech.audio import SLACK_SECONDS, Span
from data_pipeline.speech.corpora.utterance import Utterance, check_path, listed_file, listed_lines


class _Strict(BaseModel):
    """These are the keys that are read; others are not."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class _AudioSource(_Strict):
    type: str
    source: str | dict[str, Any]
    channels: list[int] = Field(min_length=1)


class _Recording(_Strict):
    sources: list[_AudioSource] = Field(min_length=1)
    transforms: list[Any] | None = None


class _Supervision(_Strict):
    start: float = 0.0
    duration: float | None = Field(default=None, gt=0)
    channel: int | list[int] | None = None
    text: str | None = None
    speaker: str | None = None


class _Cut(_Strict):
    type: Literal["MonoCut"]
    id: Annotated[str, Field(min_length=1)]
    start: float = Field(ge=0)
    duration: float = Field(gt=0)
    channel: int = Field(ge=0)
    supervisions: list[_Supervision]
    recording: _Recording


class LhotseCuts:
    """It is one such file. Paths in it are relative to the current directory, as in lhotse.

    Raises DataError where there is no such file.
    """

    def __init__(self, path: str, found: SourceFiles) -> None:
        self._file = listed_file(found, path)

    def utterances(self) -> Iterator[Utterance]:
        """It yields an utterance for each cut. Raises DataError for a cut that is not simple, and for an id that is
        there twice."""
        places: dict[str, str] = {}
        for place, line in listed_lines(self._file):
            utterance = parsed_cut(line, place)
            if utterance.name in places:
                raise DataError(
                    f"{place}: the id {utterance.name} stands there already ({places[utterance.name]}); leave one of "
                    "them"
                )
            places[utterance.name] = place
            yield utterance


def parsed_cut(line: str, place: str) -> Utterance:
    """It reads a cut. Raises DataError for what is none, or no simple one."""
    with parsed_as(DataError, place):
        facts = parse_json(line)
        kind = facts.get("type") if isinstance(facts, dict) else None
        if kind != "MonoCut":
            raise ValueError(
                f"is of type {shown(kind)}, and only MonoCut is read; have lhotse save simple cuts"
            )
        cut = _Cut.model_validate(facts)
        (source, *others), transforms = cut.recording.sources, cut.recording.transforms
        if transforms:
            raise ValueError(
                "its recording has transforms, which are not done here; have lhotse save the audio"
            )
        if others or source.type != "file" or not isinstance(source.source, str):
            raise ValueError(
                f"its recording has {1 + len(others)} sources, the first of type {shown(source.type)}, and only a "
                "recording in one file is read; have lhotse save the audio"
            )
        if len(cut.supervisions) > 1:
            raise ValueError(
                f"has {len(cut.supervisions)} supervisions, and an utterance has one; trim_to_supervisions of lhotse "
                "makes a cut of each"
            )
        if cut.channel not in source.channels:
            raise ValueError(f"channel {cut.channel} is none of {source.channels}, those of its recording")
        said = cut.supervisions[0] if cut.supervisions else _Supervision()
        if said.channel not in (None, cut.channel, [cut.channel]):
            raise ValueError(f"its supervision is of channel {said.channel}, and the cut of {cut.channel}")
        start, seconds = heard(cut, said)
        return Utterance(
            name=shown(cut.id),
            place=place,
            audio=Path(check_path(source.source)).absolute(),
            text=said.text,
            span=Span(cut.start + start, seconds, source.channels.index(cut.channel)),
            speaker=said.speaker or None,
        )


def heard(cut: _Cut, said: _Supervision) -> tuple[float, float]:
    """It returns where in a cut its supervision begins, and for how many seconds it goes on: all of the cut, or a part.

    Raises ValueError where that is beyond the cut, by more than rounding: a part of what is said is not heard then.
    """
    end = cut.duration if said.duration is None else said.start + said.duration
    first, last = max(said.start, 0.0), min(end, cut.duration)
    if said.start < -SLACK_SECONDS or end > cut.duration + SLACK_SECONDS or first >= last:
        raise ValueError(
            f"its supervision lies at {said.start:g} to {end:g} s of its {cut.duration:g} s, which hold but a part of "
            "what is said; trim_to_supervisions of lhotse makes a cut of all of it, and cut_into_windows takes "
            "keep_excessive_supervisions=False"
        )
    if abs(said.start) <= SLACK_SECONDS and abs(end - cut.duration) <= SLACK_SECONDS:
        return 0.0, cut.duration
    return first, last - first
