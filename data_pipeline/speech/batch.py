"""Utterances form one micro-batch, padded to the longest of its own.

B  samples in a micro-batch, T  frames of the longest, M  mel bins, U  units of the longest transcript
"""

from dataclasses import dataclass, replace

from torch import Tensor

from data_pipeline.speech.units import BLANK as BLANK  # what a model is to know of units


@dataclass(frozen=True)
class SpeechBatch:
    """It holds what was heard, and what was said, to be aligned by the loss.

    A sample that is damaged or pads a validation set is one silent frame without units, of weight 0.
    """

    features_BTM: Tensor
    """float32; log-mel features, normalized over each utterance, and 0 behind its end."""
    frames_B: Tensor
    """int64; frames of each utterance, 1 at least."""
    units_BU: Tensor
    """int64; ids of the transcript, filled up with BLANK."""
    lengths_B: Tensor
    """int64; units of each transcript."""
    weights_B: Tensor
    """float32; 1 where the utterance counts, 0 where it is masked."""
    damaged: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.features_BTM, self.frames_B)

    @property
    def labels(self) -> tuple[Tensor, ...]:
        return (self.units_BU, self.lengths_B, self.frames_B, self.weights_B)

    @property
    def samples(self) -> int:
        return self.features_BTM.shape[0]

    @property
    def tokens(self) -> int:
        """It counts frames, without the padding."""
        return int(self.frames_B.sum())

    @property
    def target_weight(self) -> float:
        """Every unit of an utterance has its weight."""
        return float((self.weights_B * self.lengths_B).sum())

    def scaled(self, factor: float) -> "SpeechBatch":
        return replace(self, weights_B=self.weights_B * factor)
