"""Batches: the contract between the data and everything that computes.

B  samples in a micro-batch
S  tokens in a sequence
"""

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor


class Batch(Protocol):
    """One micro-batch of any task.

    `inputs` feeds the first layer of the model and `labels` the objective; under pipeline parallelism
    these are different processes, so neither may need the other.
    """

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...

    @property
    def labels(self) -> tuple[Tensor, ...]: ...

    @property
    def samples(self) -> int:
        """Samples in this micro-batch, the masked ones included."""

    @property
    def tokens(self) -> int:
        """Tokens that the model reads for this micro-batch, for throughput and budgets."""

    @property
    def target_weight(self) -> float:
        """Sum of the weights of all targets: what the summed loss is divided by."""

    @property
    def damaged(self) -> tuple[str, ...]:
        """Names of samples that were found damaged and are masked (weight 0) here."""

    def scaled(self, factor: float) -> "Batch":
        """The same batch with all target weights multiplied."""


@dataclass(frozen=True)
class TokenBatch:
    """Sequences for next-token prediction."""

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
