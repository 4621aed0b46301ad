"""The corpora of a split, as a user names them, are listed one after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data_pipeline.preparing.source_files import SourceFiles
from data_pipeline.speech.corpora.kaldi import KaldiFolder
from data_pipeline.speech.corpora.lhotse import LhotseCuts
from data_pipeline.speech.corpora.librispeech import LibriSpeechFolder
from data_pipeline.speech.corpora.nemo import NemoManifest
from data_pipeline.speech.corpora.utterance import Corpus, Utterance

FORMATS: dict[str, Callable[[str, SourceFiles], Corpus]] = {
    "manifest": NemoManifest,
    "librispeech": LibriSpeechFolder,
    "kaldi": KaldiFolder,
    "lhotse": LhotseCuts,
}
"""Name of the option -> what reads what it names."""


@dataclass(frozen=True)
class RawCorpora:
    """It says where the utterances of a split are."""

    named: tuple[tuple[str, str], ...] = ()
    """Formats, with the file or folder of each corpus."""

    def __bool__(self) -> bool:
        return bool(self.named)


class Corpora:
    """They are opened corpora. Raises DataError where one is not there, or not of its format."""

    def __init__(self, raw: RawCorpora) -> None:
        self.found = SourceFiles()
        """Their lists, and in folders all files."""
        self._corpora: list[Corpus] = [FORMATS[kind](path, self.found) for kind, path in raw.named]

    def utterances(self) -> Iterator[Utterance]:
        """It yields those of all corpora, in the order in which they are named."""
        for corpus in self._corpora:
            yield from corpus.utterances()
