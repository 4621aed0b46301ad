"""A folder of shards with time series says in its manifest which rows of which series it holds."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from data_pipeline.parsing import Digest
from data_pipeline.shards.manifest import Count, Manifest

Name = Annotated[str, StringConstraints(max_length=4096)]
Step = Annotated[float, Field(gt=0, le=2**53, allow_inf_nan=False)] | None


class ScalerEntry(BaseModel):
    """It describes the file with the means and deviations of the train split, which lies beside the splits."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: Literal["scaler.json"] = "scaler.json"
    sha256: Digest


class SeriesEntry(BaseModel):
    """It describes what a split has of one series."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Name
    """Of its file."""
    rows: Count
    """Consecutive rows, the context in front included."""
    first_time: Name | None
    """Of the first row behind the context, as ISO 8601 has it; none where there are no times."""
    last_time: Name | None
    """Of the last row."""


class SeriesManifest(Manifest):
    """It describes chunks of consecutive rows. A chunk has rows of one series alone, and the last chunk of a series
    what is left of it."""

    kind: Literal["series"] = "series"
    channels: Count
    """Columns of every row."""
    columns: tuple[Name, ...] = Field(min_length=1)
    """Their names."""
    chunk_rows: Count
    """Rows of a chunk."""
    context: Annotated[int, Field(ge=0, lt=2**53)]
    """Rows in front of each series that belong to the split before it: windows begin there, and forecast none."""
    step_seconds: Step
    """Time from a row to the next; none where there are no times, or where that differs."""
    series: tuple[SeriesEntry, ...] = Field(min_length=1)
    """They are in the order of their chunks; no window has rows of two of them."""
    scaler: ScalerEntry

    @property
    def rows(self) -> int:
        """It counts the rows of all series, their contexts included."""
        return sum(entry.rows for entry in self.series)

    @model_validator(mode="after")
    def _columns_are_counted(self) -> Self:
        if self.channels != len(self.columns):
            raise ValueError(f"channels is {self.channels}, but there are {len(self.columns)} columns")
        return self

    @model_validator(mode="after")
    def _chunks_are_counted(self) -> Self:
        """It refuses other chunks than those of the series, and rows that the shards have no room for."""
        if (chunks := sum(-(-entry.rows // self.chunk_rows) for entry in self.series)) != self.samples:
            raise ValueError(f"samples is {self.samples}, but the series have {chunks} chunks")
        if 4 * self.rows * self.channels > (size := sum(shard.bytes for shard in self.shards)):
            raise ValueError(f"{self.rows} rows of {self.channels} columns do not fit in {size} bytes")
        return self
