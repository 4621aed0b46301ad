"""The batch equation of a layout."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchEquation:
    """micro x accumulation x data = global, in samples."""

    micro: int
    accumulation: int
    data: int
    tokens_per_sample: int

    @property
    def samples(self) -> int:
        """Samples of one optimizer step."""
        return self.micro * self.accumulation * self.data

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.samples * self.tokens_per_sample
