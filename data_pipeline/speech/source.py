"""Utterances, recorded speech with its transcripts, are one kind of data.

N  samples of audio
T  frames
M  mel bins
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as, read_whole
from data_pipeline.shards.arrays import parsed_array
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.shards.storage import data_errors
from data_pipeline.source import Buckets, Source
from data_pipeline.speech.audio import decode_flac
from data_pipeline.speech.augmentation import Augmentation
from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.collate import SpeechCollator, decode_units
from data_pipeline.speech.config import LONGEST_SECONDS, SpeechConfig, rounded_up
from data_pipeline.speech.manifest import SpeechManifest
from data_pipeline.speech.units import UNITS_FILES, Units, parse_units


class SpeechSource(Source[SpeechManifest, SpeechConfig, SpeechBatch]):
    """It reads recorded speech whose transcripts have the same units."""

    manifest_type = SpeechManifest
    companion_files = UNITS_FILES

    def facts(self, manifest: SpeechManifest) -> dict[str, Any]:
        """It returns the checksum of the units, and the sample rate."""
        return {"units": manifest.units.sha256, "sample_rate": manifest.sample_rate}

    def check(self, dataset: Dataset[SpeechManifest], data: SpeechConfig) -> None:
        """It raises DataError when an utterance is longer than the configuration says, or the rate is another, or other
        units lie beside the shards."""
        manifest = dataset.manifest
        if manifest.sample_rate != data.sample_rate:
            raise DataError(
                f"{dataset.name}: has audio of {manifest.sample_rate} Hz, but data.sample_rate is {data.sample_rate}; "
                f"set it to {manifest.sample_rate}, or prepare the data again with --sample-rate {data.sample_rate}"
            )
        if manifest.longest_seconds > data.max_seconds:
            longest = rounded_up(manifest.longest_seconds)
            raise DataError(
                f"{dataset.name}: has an utterance of {longest} seconds, but data.max_seconds is {data.max_seconds:g}; "
                f"set it to {longest}, or prepare the data again with --max-seconds {data.max_seconds:g}"
            )
        if _has_units(dataset):
            _units_beside(dataset)

    def check_together(
        self, dataset: Dataset[SpeechManifest], other_name: str, other: SpeechManifest
    ) -> None:
        """It raises DataError when two datasets have different units or rates."""
        mine, its = dataset.manifest, other
        if mine.units != its.units:
            raise DataError(
                f"{dataset.name}: made with the units {mine.units.sha256[:16]}, but {other_name} with "
                f"{its.units.sha256[:16]}; prepare one with the units of the other: --units {its.units.file}"
            )
        super().check_together(dataset, other_name, other)

    def collator(
        self, manifest: SpeechManifest, data: SpeechConfig
    ) -> Callable[[Sequence[Sample]], SpeechBatch]:
        """It returns what decodes audio, alters it by chance and makes features of it."""
        return SpeechCollator(manifest, data)

    def buckets(self, dataset: Dataset[SpeechManifest], data: SpeechConfig) -> Buckets:
        """It returns the samples of audio of each utterance, by which batches are cut. Raises DataError for lengths
        that are not those of the manifest."""
        altered = Augmentation(data.augmentation, data.sample_rate).lengths
        return Buckets(_lengths(dataset)[:, :1], data.bucket_size, by_cost=True, altered=altered)

    def describer(self, dataset: Dataset[SpeechManifest]) -> Callable[[Sample], str]:
        """It returns what tells seconds and transcripts, with the units that lie beside the dataset."""
        units, rate = _units_beside(dataset), dataset.manifest.sample_rate

        def describe(sample: Sample) -> str:
            flac, stored = sample.fields
            seconds = len(decode_flac(flac, rate, LONGEST_SECONDS * rate)) / rate
            return f"{seconds:.2f} s: {units.decode(decode_units(stored, units.count).tolist())}"

        return describe

    def companions(self, dataset: Dataset[SpeechManifest]) -> dict[str, bytes]:
        """It returns the units, if they lie beside the dataset; `check` has seen to it that they are its own."""
        entry = dataset.manifest.units
        return {entry.file: dataset.folder.parent().read(entry.file)} if _has_units(dataset) else {}

    def shuffle_targets(self, batch: SpeechBatch, row: int, generator: torch.Generator) -> SpeechBatch:
        """It returns the batch with the units of one row permuted, padding left where it is; where that brought more
        equal units together than there were, and needed more frames, in their opposite order."""
        units_BU, count = batch.units_BU.clone(), int(batch.lengths_B[row])
        said = batch.units_BU[row, :count]
        shuffled = said[torch.randperm(count, generator=generator)]
        units_BU[row, :count] = said.flip(0) if repeats(shuffled) > repeats(said) else shuffled
        return replace(batch, units_BU=units_BU)

    def randomise(
        self, batch: SpeechBatch, manifest: SpeechManifest, row: int, generator: torch.Generator
    ) -> SpeechBatch:
        """It returns the batch with noise instead of the features of one row, as many frames of it."""
        features_BTM, frames = batch.features_BTM.clone(), int(batch.frames_B[row])
        features_BTM[row, :frames] = torch.randn(features_BTM[row, :frames].shape, generator=generator)
        return replace(batch, features_BTM=features_BTM)


def repeats(units_U: torch.Tensor) -> int:
    """It counts units that are equal to the one before: an alignment needs a blank between them."""
    return int((units_U[1:] == units_U[:-1]).sum())


def _has_units(dataset: Dataset[SpeechManifest]) -> bool:
    return dataset.folder.parent().has(dataset.manifest.units.file)


def _units_beside(dataset: Dataset[SpeechManifest]) -> Units:
    """It returns the units that lie beside the shards. Raises DataError where there are none, or other ones."""
    folder, entry = dataset.folder.parent(), dataset.manifest.units
    name = f"{folder.name}/{entry.file}"
    content = folder.read(entry.file)
    if (found := hashlib.sha256(content).hexdigest()) != entry.sha256:
        raise DataError(
            f"{name}: not the units that {dataset.name} was made with: SHA-256 is {found}, the manifest says "
            f"{entry.sha256}"
        )
    units = parse_units(entry.file, content, name)
    if units.count != entry.count:
        raise DataError(f"{name}: has {units.count} ids, the manifest of {dataset.name} says {entry.count}")
    return units


def _lengths(dataset: Dataset[SpeechManifest]) -> NDArray[np.int32]:
    """It returns the samples of audio and the units of each utterance (samples, 2)."""
    manifest = dataset.manifest
    entry = manifest.lengths
    path = dataset.folder.local(entry.file, entry.bytes, entry.sha256)
    with data_errors(path):
        content = read_whole(path, entry.bytes)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise DataError(f"{path}: changed since the manifest beside it was written")
    with parsed_as(DataError, path):
        lengths_N2 = parsed_array(content, np.dtype(np.int32).newbyteorder("<"), (len(dataset), 2))
        audio_N, units_N = lengths_N2.T.astype(np.int64)
        longest, seconds = (int(one) / manifest.sample_rate for one in (audio_N.max(), audio_N.sum()))
        found, said = (
            (longest, seconds, int(units_N.sum())),
            (manifest.longest_seconds, manifest.seconds, manifest.unit_total),
        )
        if min(int(audio_N.min()), int(units_N.min())) < 1 or found != said:
            raise ValueError(
                f"has utterances of up to {found[0]:g} s, {found[1]:g} s together, and {found[2]} units, the manifest "
                f"says {said[0]:g} s, {said[1]:g} s and {said[2]} units; prepare the data again"
            )
    return lengths_N2
