"""Data folders of Kaldi: `wav.scp` and `text`, and if there are any `segments` and `utt2spk`; ids are the first word of
each line. What `wav.scp` has as a command is refused: nothing of it is run."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as
from data_pipeline.preparing.source_files import SourceFile, SourceFiles
from data_pipeline.shown import shown
from data_pipeline.speech.audio import WHOLE, Span
from data_pipeline.speech.corpora.utterance import Utterance, check_path, listed_file, listed_lines

AUDIO, TEXT, SEGMENTS, SPEAKERS = "wav.scp", "text", "segments", "utt2spk"

Entry = tuple[str, str]
"""The rest of a line, and its place for messages."""


class KaldiFolder:
    """It is such a folder. Paths in it are relative to the current directory, as in Kaldi.

    Raises DataError where it lacks a file.
    """

    def __init__(self, path: str, found: SourceFiles) -> None:
        folder = Path(path)
        if not folder.is_dir():
            raise DataError(
                f"{shown(path)}: is no folder; name one with {AUDIO} and {TEXT}, as Kaldi has them"
            )
        self._audio = listed_file(found, folder / AUDIO)
        self._text = listed_file(found, folder / TEXT)
        self._segments = _optional(found, folder / SEGMENTS)
        self._speakers = _optional(found, folder / SPEAKERS)

    def utterances(self) -> Iterator[Utterance]:
        """It yields what has audio, with or without a transcript, in the order of that list; then what has but a
        transcript."""
        audio = {name: _audio_path(*entry) for name, entry in _entries(self._audio).items()}
        text, speakers = _entries(self._text), _entries(self._speakers)
        heard = set()
        for name, place, recording, span in self._spans(audio):
            heard.add(name)
            said, speaker = text.get(name), speakers.get(name)
            yield Utterance(
                name=shown(name),
                place=place,
                audio=audio.get(recording),
                text=said and said[0],
                span=span,
                speaker=speaker and speaker[0],
            )
        for name, (said_alone, place) in text.items():
            if name not in heard:
                yield Utterance(shown(name), place, None, said_alone)

    def _spans(self, audio: Mapping[str, Path]) -> Iterator[tuple[str, str, str, Span]]:
        """It yields ids of utterances with their place, recording and part of it."""
        if self._segments is None:
            yield from ((name, shown(self._audio.path), name, WHOLE) for name in audio)
            return
        for name, (rest, place) in _entries(self._segments).items():
            with parsed_as(DataError, place):
                words = rest.split()
                if len(words) != 3:
                    raise ValueError(
                        f"{shown(rest)}: stands for a recording, a start and an end, and a channel is not read"
                    )
                recording, start, end = words
                first, last = float(start), float(end)
                if not 0 <= first < float("inf") or not (last == -1 or first < last < float("inf")):
                    raise ValueError(f"{shown(rest)}: starts and ends where no segment does")
            yield name, place, recording, Span(first, None if last == -1 else last - first)


def _optional(found: SourceFiles, path: Path) -> SourceFile | None:
    return listed_file(found, path) if path.exists() else None


def _entries(file: SourceFile | None) -> dict[str, Entry]:
    """It reads a list whose lines begin with an id. Raises DataError for an id that is there twice."""
    entries: dict[str, Entry] = {}
    for place, line in listed_lines(file) if file else ():
        name, _, rest = line.strip().replace("\t", " ").partition(" ")
        if name in entries:
            raise DataError(
                f"{place}: the id {shown(name)} stands there already ({entries[name][1]}); leave one of them"
            )
        entries[name] = rest.strip(), place
    return entries


def _audio_path(named: str, place: str) -> Path:
    """It returns the file that a line of `wav.scp` names. Raises DataError for a command, and for standard input."""
    if named.endswith("|") or named.startswith("|") or named == "-":
        raise DataError(
            f"{place}: is a command ({shown(named)}), and none is run here; write the audio to files (WAV, FLAC or "
            "Ogg) and name those"
        )
    with parsed_as(DataError, place):
        return Path(check_path(named)).absolute()
