"""A layout has a batch equation: how micro-batches make up the global batch of a step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchEquation:
    """It reads: micro x accumulation x data = global, in samples."""

    micro: int
    accumulation: int
    data: int
    tokens_per_sample: int

    @property
    def samples(self) -> int:
        """One optimizer step takes this many samples."""
        return self.micro * self.accumulation * self.data

    @property
    def tokens(self) -> int:
        """One optimizer step takes this many tokens."""
        return self.samples * self.tokens_per_sample
