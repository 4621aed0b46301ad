"""Folders as LibriSpeech has them: `SPLIT/SPEAKER/CHAPTER/ID.flac`, beside `SPEAKER-CHAPTER.trans.txt` with `ID TEXT`
in each line."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.preparing.source_files import SourceFile, SourceFiles
from data_pipeline.shown import shown
from data_pipeline.speech.corpora.utterance import NO_AUDIO, Utterance, listed_lines

TRANSCRIPTS = ".trans.txt"
AUDIO = (".flac", ".wav", ".ogg")


class LibriSpeechFolder:
    """It is such a folder, or a split, a speaker or a chapter of one.

    Raises DataError where there is none, or nothing of it in it.
    """

    def __init__(self, path: str, found: SourceFiles) -> None:
        here = SourceFiles()
        here.add(path)
        found.add(path)
        self._chapters: dict[Path, list[SourceFile]] = {}
        self._audio: dict[Path, dict[str, Path]] = {}
        """Folder -> id -> file."""
        for file in here.files:
            if file.path.name.endswith(TRANSCRIPTS):
                self._chapters.setdefault(file.path.parent, []).append(file)
            elif file.path.suffix.lower() in AUDIO:
                self._audio.setdefault(file.path.parent, {})[file.path.stem] = file.path
        unread = {Path(entry.name): entry.reason for entry in here.left_out}
        self._unread = {(path.parent, path.stem): reason for path, reason in unread.items()}
        """Folder and id of what is not read, such as a link that leads out of the corpus -> why."""
        if not self._chapters:
            why = next((f" ({shown(file)}: {reason})" for file, reason in unread.items()), "")
            raise DataError(
                f"{shown(path)}: has no file *{TRANSCRIPTS}{why}; name a folder as LibriSpeech's, with ID.flac beside "
                f"SPEAKER-CHAPTER{TRANSCRIPTS}"
            )

    def utterances(self) -> Iterator[Utterance]:
        """It yields the lines of all transcripts, and behind those of a folder the audio that has none."""
        for folder in sorted({*self._chapters, *self._audio}):
            yield from self._chapter(folder, self._audio.get(folder, {}))

    def _chapter(self, folder: Path, audio: Mapping[str, Path]) -> Iterator[Utterance]:
        places: dict[str, str] = {}
        for file in self._chapters.get(folder, ()):
            for place, line in listed_lines(file):
                name, _, text = line.strip().partition(" ")
                if name in places:
                    raise DataError(
                        f"{place}: the id {shown(name)} stands there already ({places[name]}); leave one of them"
                    )
                places[name] = place
                unread = self._unread.get((folder, name))
                yield Utterance(
                    name=shown(name),
                    place=place,
                    audio=audio.get(name),
                    text=text,
                    speaker=_speaker(folder),
                    lacking=f"{NO_AUDIO} that is read: {unread}" if unread else NO_AUDIO,
                )
        for name in sorted({*audio} - {*places}):
            yield Utterance(shown(name), shown(audio[name]), audio[name], None, speaker=_speaker(folder))


def _speaker(folder: Path) -> str:
    return folder.absolute().parent.name
