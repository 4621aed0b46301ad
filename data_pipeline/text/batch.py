"""Sequences of tokens form one micro-batch.

B  samples in a micro-batch
S  tokens in a sequence
"""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """It holds sequences for next-token prediction."""

    tokens_BS: Tensor
    """int64; what the model reads."""
    targets_BS: Tensor
    """int64; the token that follows each position."""
    weights_BS: Tensor
    """float32; 1 where the target counts, 0 where it is masked."""
    damaged: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.tokens_BS,)

    @property
    def labels(self) -> tuple[Tensor, ...]:
        return (self.targets_BS, self.weights_BS)

    @property
    def samples(self) -> int:
        return self.tokens_BS.shape[0]

    @property
    def tokens(self) -> int:
        return self.tokens_BS.numel()

    @property
    def target_weight(self) -> float:
        return float(self.weights_BS.sum())

    def scaled(self, factor: float) -> "TokenBatch":
        return replace(self, weights_BS=self.weights_BS * factor)
