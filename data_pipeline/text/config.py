"""These are the keys of `[data]` for a run that reads text."""

from typing import Literal

from pydantic import Field

from data_pipeline.config import DataConfig


class TextConfig(DataConfig):
    """Sources, sequence length and batch sizes; the data order follows from them and the seed."""

    kind: Literal["text"] = Field(default="text", repr=False)
    sequence_length: int = Field(gt=0)
    """Tokens in a training sequence; must equal what the shards were packed for."""

    @property
    def tokens_per_sample(self) -> int:
        """It is the sequence length, since all samples have the same."""
        return self.sequence_length
