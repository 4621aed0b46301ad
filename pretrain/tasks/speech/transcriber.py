"""Recordings are transcribed by a CTC model with the features and the units that its data was made with.

B  utterances, N  samples of audio, T  frames of the longest, M  mel bins
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from data_pipeline.shown import shown
from data_pipeline.speech.audio import FULL_SCALE, AudioForm, AudioRefused, AudioTooLong, read_audio
from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.collate import padded_features
from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.features import LogMel, normalized
from data_pipeline.speech.units import Units
from pretrain.errors import CheckpointError
from pretrain.tasks.scores import Score
from pretrain.tasks.speech.alignment import LogProbs, aligned
from pretrain.tasks.speech.config import output_frames
from pretrain.tasks.speech.decoding import decode
from pretrain.tasks.speech.fusion import Fusion
from pretrain.tasks.speech.language_model import NGrams
from pretrain.tasks.speech.scores import alignment, scores
from pretrain.tasks.transcriber import Decoding, Recording, TimedUnit, Transcriber, Transcript


class SpeechTranscriber(Transcriber):
    """It hears what training hears in validation, and writes the text of the likeliest units."""

    def __init__(self, data: SpeechConfig, stride: int, units: Units, decoding: Decoding) -> None:
        """`stride` counts the frames of an output. Raises what `NGrams` does."""
        self.longest_seconds = data.max_seconds
        self._data, self._stride, self._units = data, stride, units
        self._features = LogMel(data)
        self._beam = decoding.beam
        self._fusion = self._fused(decoding)

    def read(self, path: Path) -> Recording:
        form = AudioForm(self._data.sample_rate, self._data.max_seconds)
        try:
            samples_N = read_audio(path, form).samples_N
        except AudioRefused as error:
            detail = f" ({error.detail})" if error.detail else ""
            remedy = (
                ", which the model was trained for; cut it at pauses"
                if isinstance(error, AudioTooLong)
                else ""
            )
            raise DataError(f"{shown(path)}: {error}{detail}{remedy}") from error
        audio_N = torch.from_numpy(samples_N.astype(np.float32) / FULL_SCALE)
        return Recording(normalized(self._features(audio_N)), len(audio_N) / self._data.sample_rate)

    def inputs(self, recordings: Sequence[Recording]) -> tuple[Tensor, ...]:
        return padded_features([recording.heard for recording in recordings])

    def transcripts(self, outputs: Tensor, inputs: tuple[Tensor, ...]) -> list[Transcript]:
        _, frames_B = inputs
        log_probs_BTV = outputs.cpu().double().log_softmax(-1).numpy()
        ends = output_frames(frames_B, self._stride).tolist()
        return [self._transcript(row_TV[:end]) for row_TV, end in zip(log_probs_BTV, ends, strict=True)]

    def references(self, batch: Batch) -> list[str | None]:
        assert isinstance(batch, SpeechBatch)
        rows = zip(batch.units_BU.tolist(), batch.lengths_B.tolist(), batch.weights_B.tolist(), strict=True)
        return [self._units.decode(units[:length]) if weight else None for units, length, weight in rows]

    def scores(self, hypotheses: Sequence[str], references: Sequence[str]) -> tuple[Score, ...]:
        return scores(hypotheses, references)

    def alignment(self, name: str, hypothesis: str, reference: str) -> str:
        return alignment(name, hypothesis, reference)

    def _fused(self, decoding: Decoding) -> Fusion | None:
        if decoding.language_model is None:
            return None
        model = NGrams(decoding.language_model)
        weight, bonus = decoding.language_weight, decoding.word_bonus
        return Fusion(model, weight, bonus, self._units.count, self._units.decode)

    def _transcript(self, log_probs_TV: LogProbs) -> Transcript:
        if np.isnan(log_probs_TV).any():
            raise CheckpointError(
                "the model computes no numbers (NaN or infinity); choose another checkpoint"
            )
        found = decode(log_probs_TV, self._beam, self._fusion)
        seconds = self._stride * self._data.hop / self._data.sample_rate
        units = (
            TimedUnit(self._units.decode([span.unit]), span.first * seconds, span.end * seconds)
            for span in aligned(log_probs_TV, found.units)
        )
        return Transcript(self._units.decode(found.units), tuple(units), found.log_probability, found.score)
