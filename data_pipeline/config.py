"""What a run reads: prepared sources, how they are mixed, and the batch equation."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SourceConfig(BaseModel):
    """One prepared dataset and its share of the mixture."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    path: str
    """Folder or fsspec URL (`s3://`, `http://`, `memory://`) that `surefoot prepare` wrote: `DIR/train`, or `DIR`,
    which means `DIR/train` among the sources and `DIR/validation` in `data.validation`."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the samples drawn from this source, relative to the sum of all weights."""


class DataConfig(BaseModel):
    """Sources, sequence length and batch sizes; the data order follows from them and the seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    kind: Literal["text"] = Field(default="text", repr=False)
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """The training mixture."""
    validation: tuple[SourceConfig, ...] = ()
    """The fixed validation set; empty: the validation split beside each training source."""
    sequence_length: int = Field(gt=0)
    """Tokens in a training sequence; must equal what the shards were packed for."""
    micro_batch_size: int = Field(gt=0)
    """Samples that one rank carries through one forward and backward pass."""
    global_batch_size: int = Field(gt=0)
    """Samples of one optimizer step, over all ranks and micro-batches."""
    shuffle: bool = True
    """Draw samples in a pseudo-random order, new in each epoch; false keeps the order of the shards."""
    prefetch_steps: int = Field(default=2, ge=0)
    """Optimizer steps of batches that a background thread keeps ready; 0 reads in the training thread."""
    cache: Path | None = None
    """Folder for shards of remote sources; none: `surefoot` in the user's cache folder."""
    damaged_sample_budget: int = Field(default=0, ge=0)
    """Damaged samples that a run may skip (their loss is masked) before it stops with exit code 3."""

    @property
    def tokens_per_sample(self) -> int:
        """About how many tokens a sample has."""
        return self.sequence_length
