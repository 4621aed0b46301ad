"""A run says with these keys what it reads, whatever the kind of data: datasets, their mixture, and the batch equation.

A kind of data adds the keys of its own in a subclass, in the `config.py` of its room.
"""

from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from data_pipeline.paths import LocationSetting, PathSetting
from data_pipeline.shown import masked

SECRET_IN_URL = "secret_in_url"
"""The type of the error for a URL that is not to be shown."""


class SourceConfig(BaseModel):
    """One prepared dataset and its share of the mixture."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    path: LocationSetting
    """Folder or fsspec URL (`s3://`, `http://`, `memory://`) that `surefoot prepare` wrote: `DIR/train`, or `DIR`,
    which means `DIR/train` among the sources and `DIR/validation` in `data.validation`. A URL has no user, password or
    query: it is written down in many places."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the samples drawn from this source, relative to the sum of all weights."""

    @field_validator("path")
    @classmethod
    def _keeps_no_secret(cls, path: str) -> str:
        if masked(path) != path:
            raise PydanticCustomError(
                SECRET_IN_URL,
                "must have no user, password or query: it is written to config.toml, messages and reports; give them "
                "to fsspec in a file of ~/.config/fsspec, or in the environment",
            )
        return path


class DataConfig(BaseModel):
    """The keys that all kinds of data have in common; the data order follows from them and the seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    kind: str = Field(repr=False)
    """Kind of data: each subclass has a value of its own, by which a union of them is told apart. It follows from
    the task, so users do not write it, and configurations that are written down do not show it."""
    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """The training mixture."""
    validation: tuple[SourceConfig, ...] = ()
    """The fixed validation set; empty: the validation split beside each training source, and where none of them has
    one, no validation."""
    micro_batch_size: int = Field(gt=0)
    """Samples that one rank carries through one forward and backward pass; of speech their mean number, since
    micro-batches of long utterances have fewer."""
    global_batch_size: int = Field(gt=0)
    """Samples of one optimizer step, over all ranks and micro-batches."""
    shuffle: bool = True
    """Draw samples in a pseudo-random order, new in each epoch; false keeps the order of the shards."""
    prefetch_steps: int = Field(default=2, ge=0, le=1024)
    """Optimizer steps of batches that a background thread keeps ready; 0 reads in the training thread."""
    cache: PathSetting | None = None
    """Folder for shards of remote sources; none: `surefoot` in the user's cache folder."""
    damaged_sample_budget: int = Field(default=0, ge=0)
    """Damaged samples that a run may skip (their loss is masked) before it stops with exit code 3."""

    ragged: ClassVar[bool] = False
    """Whether samples differ in length, and with them the micro-batches of a step in shape."""

    @property
    def tokens_per_sample(self) -> int:
        """It tells about how many tokens the model reads for a sample, for plans and budgets; each subclass says it."""
        raise NotImplementedError


ConfigType = TypeVar("ConfigType", bound=DataConfig)
