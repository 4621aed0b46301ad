"""Encoded utterances are written here as the train and validation splits of a speech dataset.

N  utterances
"""

import hashlib
import io
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.shards.manifest import MANIFEST
from data_pipeline.shards.storage import data_errors
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.speech.encoding import STORED_UNITS, Encoded
from data_pipeline.speech.manifest import LengthsEntry, SpeechManifest, UnitsEntry
from data_pipeline.speech.units import Units
from data_pipeline.text.splits import Split

FIELDS = ("flac", "units")
"""Extensions of the members of an utterance."""


class UtteranceWriter:
    """It writes the utterances of one split into `folder/SPLIT/`."""

    def __init__(self, folder: Path, split: Split, shard_samples: int) -> None:
        self._folder = folder / split
        self._split = split
        self._lengths = array("i")
        self.digests: set[bytes] = set()
        """Of the utterances so far."""
        self.repeated = 0
        """Utterances that were there before, with the same audio and the same units."""
        with data_errors(self._folder):
            self._folder.mkdir()
        self._shards = ShardWriter(self._folder, "speech", shard_samples)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shards.__exit__(kind, error, trace)

    def add(self, utterance: Encoded) -> None:
        """It appends an utterance."""
        fields = (utterance.flac, utterance.units.astype(STORED_UNITS).tobytes())
        self._shards.write(f"{self._split}-{self.samples:09d}", dict(zip(FIELDS, fields, strict=True)))
        self._lengths.extend((utterance.samples, len(utterance.units)))
        self.repeated += utterance.digest in self.digests
        self.digests.add(utterance.digest)

    @property
    def samples(self) -> int:
        """It counts the utterances so far."""
        return len(self._lengths) // 2

    def finish(self, units: Units, sample_rate: int, frame_seconds: float) -> SpeechManifest:
        """It finishes the shards and writes lengths and manifest."""
        lengths_N2 = np.frombuffer(self._lengths, np.int32).reshape(-1, 2)
        audio, unit_total = lengths_N2.sum(0, dtype=np.int64).tolist()
        manifest = SpeechManifest(
            split=self._split,
            documents=self.samples,
            samples=self.samples,
            fields=FIELDS,
            shards=self._shards.finish(),
            sample_rate=sample_rate,
            seconds=audio / sample_rate,
            longest_seconds=int(lengths_N2[:, 0].max()) / sample_rate,
            frame_seconds=frame_seconds,
            unit_total=unit_total,
            units=UnitsEntry(file=units.file, sha256=units.digest, count=units.count),
            lengths=self._write_lengths(lengths_N2),
        )
        path = self._folder / MANIFEST
        with data_errors(path):
            path.write_text(manifest.model_dump_json(indent=1) + "\n")
        return manifest

    def _write_lengths(self, lengths_N2: NDArray[np.int32]) -> LengthsEntry:
        file = io.BytesIO()
        np.save(file, lengths_N2.astype("<i4"), allow_pickle=False)
        content = file.getvalue()
        entry = LengthsEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        path = self._folder / entry.file
        with data_errors(path):
            path.write_bytes(content)
        return entry
