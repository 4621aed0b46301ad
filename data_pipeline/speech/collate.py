"""Utterances become batches of tensors here: audio is decoded, altered by chance, and made features.

B  samples in a micro-batch
N  samples of audio
T  frames
M  mel bins
"""

from collections.abc import Sequence
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.errors import DataError
from data_pipeline.shards.dataset import Sample
from data_pipeline.speech.audio import decode_flac
from data_pipeline.speech.augmentation import Augmentation
from data_pipeline.speech.batch import BLANK, SpeechBatch
from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.encoding import STORED_UNITS
from data_pipeline.speech.features import LogMel, normalized
from data_pipeline.speech.manifest import SpeechManifest


class SpeechCollator:
    """It pads utterances to the longest of a micro-batch; a sample without fields is a silent frame without units, of
    weight 0.

    Raises DataError for a sound sample that is not what its manifest says.
    """

    def __init__(self, manifest: SpeechManifest, data: SpeechConfig) -> None:
        self._manifest = manifest
        # Of what a run may hear, not of what this manifest has: one collator reads all datasets of a mixture.
        self._most = ceil(data.max_seconds * manifest.sample_rate)
        self._features = LogMel(data)
        self._augmentation = Augmentation(data.augmentation, manifest.sample_rate)
        self._silence_TM = torch.zeros(1, data.mel_bins)

    def __call__(self, samples: Sequence[Sample]) -> SpeechBatch:
        features, units = zip(*map(self._decoded, samples), strict=True)
        features_BTM, frames_B = padded_features(features)
        units_BU = torch.full((len(samples), max(1, *map(len, units))), BLANK)
        for row, ids in enumerate(units):
            units_BU[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        return SpeechBatch(
            features_BTM=features_BTM,
            frames_B=frames_B,
            units_BU=units_BU,
            lengths_B=torch.tensor([len(ids) for ids in units]),
            weights_B=torch.tensor([float(bool(sample.fields)) for sample in samples]),
            damaged=tuple(sample.damage for sample in samples if sample.damage),
        )

    def _decoded(self, sample: Sample) -> tuple[Tensor, NDArray[np.uint16]]:
        """It returns the features of a sample, altered as its chance has it, and its units."""
        if not sample.fields:
            return self._silence_TM, np.zeros(0, np.uint16)
        flac, stored = sample.fields
        try:
            units = decode_units(stored, self._manifest.units.count)
            audio_N = torch.from_numpy(decode_flac(flac, self._manifest.sample_rate, self._most))
        except ValueError as error:
            raise DataError(f"{sample.place}: {error}; prepare the data again") from error
        alter = self._augmentation
        audio_N = alter.perturbed(audio_N, alter.speed(sample.chance))
        features_TM = normalized(self._features(audio_N, alter.warp(sample.chance)))
        return alter.masked(features_TM, sample.chance), units


def decode_units(content: memoryview, count: int) -> NDArray[np.uint16]:
    """It returns the stored units of a transcript. Raises ValueError where these are no ids of `count`, blank
    included."""
    if not len(content) or len(content) % STORED_UNITS.itemsize:
        raise ValueError(f"has {len(content)} bytes of units, and each takes {STORED_UNITS.itemsize}")
    ids: NDArray[np.uint16] = np.frombuffer(content, STORED_UNITS)
    if (ids == BLANK).any() or (largest := int(ids.max())) >= count:
        odd = BLANK if (ids == BLANK).any() else largest
        raise ValueError(f"has the unit {odd}, but units are 1 to {count - 1}")
    return ids


def padded_features(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """It stacks features (T, M) of utterances, filled up with zeros to the longest, and counts the frames of each."""
    frames_B = torch.tensor([len(features_TM) for features_TM in features])
    return torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True), frames_B
