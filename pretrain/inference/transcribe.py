"""A model transcribes recordings, several at once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from pretrain.inference.model import LoadedModel
from pretrain.tasks.scores import Score, Scoring
from pretrain.tasks.transcriber import Recording, Transcriber, Transcript


@dataclass(frozen=True)
class Batching:
    """It says how recordings are taken together."""

    recordings: int = 16
    """In a batch."""
    ahead: int = 8
    """So many batches are read before the first one is transcribed, so that each has recordings of like lengths."""


class FileTranscriber:
    """It transcribes files with one model."""

    def __init__(self, model: LoadedModel, transcriber: Transcriber, batching: Batching) -> None:
        self._model, self._transcriber, self._batching = model, transcriber, batching

    def files(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Transcript | DataError]]:
        """It yields each file with its transcript, or with what is wrong with it; the others go on.

        Raises CheckpointError where the model has diverged.
        """
        left = iter(paths)
        while some := list(islice(left, self._batching.recordings * self._batching.ahead)):
            found: list[Recording | DataError] = [self._read(path) for path in some]
            heard = {place: one for place, one in enumerate(found) if isinstance(one, Recording)}
            transcripts = dict(zip(heard, self.recordings([*heard.values()]), strict=True))
            for place, (path, one) in enumerate(zip(some, found, strict=True)):
                yield path, one if isinstance(one, DataError) else transcripts[place]

    @torch.no_grad()
    def recordings(self, recordings: Sequence[Recording]) -> list[Transcript]:
        """It returns their transcripts. Raises CheckpointError where the model has diverged."""
        by_length = sorted(range(len(recordings)), key=lambda place: len(recordings[place].heard))
        found: dict[int, Transcript] = {}
        for start in range(0, len(by_length), self._batching.recordings):
            places = by_length[start : start + self._batching.recordings]
            inputs = self._transcriber.inputs([recordings[place] for place in places])
            outputs = self._model.layers(*(tensor.to(self._model.mesh.device) for tensor in inputs))
            found |= zip(places, self._transcriber.transcripts(outputs, inputs), strict=True)
        return [found[place] for place in range(len(recordings))]

    def _read(self, path: Path) -> Recording | DataError:
        try:
            return self._transcriber.read(path)
        except DataError as error:
            return error


class TranscriptScoring(Scoring):
    """It transcribes what is evaluated, from the outputs that its loss comes from."""

    def __init__(self, transcriber: Transcriber) -> None:
        self._transcriber = transcriber
        self._hypotheses: list[str] = []
        self._references: list[str | None] = []

    def add(self, batch: Batch, outputs: Any) -> None:
        """It decodes the outputs."""
        transcripts = self._transcriber.transcripts(outputs, batch.inputs)
        self._hypotheses += [transcript.text for transcript in transcripts]
        self._references += self._transcriber.references(batch)

    def scores(self) -> Sequence[Score]:
        """It returns the error rates of the utterances that count."""
        pairs = [pair for pair in zip(self._hypotheses, self._references, strict=True) if pair[1] is not None]
        return self._transcriber.scores(*zip(*pairs, strict=True)) if pairs else ()

    def alignments(self, names: Sequence[str]) -> Iterator[str]:
        """It yields the utterances that count, word below word."""
        for name, hypothesis, reference in zip(names, self._hypotheses, self._references, strict=True):
            if reference is not None:
                yield self._transcriber.alignment(name, hypothesis, reference)
