"""These are the keys of `[data]` for a run that reads pairs of sentences."""

from typing import ClassVar, Literal

from pydantic import Field

from data_pipeline.config import DataConfig


class TranslationConfig(DataConfig):
    """Sources, the longest sentences and batch sizes; the data order follows from sources, bucket size and seed."""

    kind: Literal["translation"] = Field(default="translation", repr=False)
    max_source_length: int = Field(gt=1, examples=[128])
    """Tokens of the longest source sentence, its end included; longer ones in the shards are refused."""
    max_target_length: int = Field(gt=1, examples=[128])
    """Tokens of the longest target sentence, its end included; longer ones in the shards are refused."""
    bucket_size: int = Field(default=64, gt=0)
    """Pairs of like lengths that come one after another; micro_batch_size or a multiple of it pads least. The order
    follows from it, so it stays what it is for the whole run."""

    ragged: ClassVar[bool] = True

    @property
    def tokens_per_sample(self) -> int:
        """It is what the longest pair has: how long they are on average is known when the data is open."""
        return self.max_source_length + self.max_target_length
