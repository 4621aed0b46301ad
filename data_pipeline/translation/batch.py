"""Pairs of sentences form one micro-batch, padded to the longest of its own on either side.

B  samples in a micro-batch
S  tokens in the source
T  tokens in the target
"""

from dataclasses import dataclass, replace

from torch import Tensor

from data_pipeline.translation.sentences import PADDING as PADDING  # what a model is to know of sentences


@dataclass(frozen=True)
class PairBatch:
    """It holds sources, and targets to be predicted token by token."""

    source_BS: Tensor
    """int64; what the encoder reads: the sentence and the end of text."""
    inputs_BT: Tensor
    """int64; what the decoder reads: the end of text, then the sentence."""
    targets_BT: Tensor
    """int64; the token that follows each position of `inputs_BT`: the sentence, then the end of text."""
    weights_BT: Tensor
    """float32; 1 where the target counts, 0 where it is padding or masked."""
    damaged: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.source_BS, self.inputs_BT)

    @property
    def labels(self) -> tuple[Tensor, ...]:
        return (self.targets_BT, self.weights_BT)

    @property
    def samples(self) -> int:
        return self.source_BS.shape[0]

    @property
    def tokens(self) -> int:
        """It counts both sides, without the padding."""
        return sum(int((ids != PADDING).sum()) for ids in self.inputs)

    @property
    def target_weight(self) -> float:
        return float(self.weights_BT.sum())

    def scaled(self, factor: float) -> "PairBatch":
        return replace(self, weights_BT=self.weights_BT * factor)
