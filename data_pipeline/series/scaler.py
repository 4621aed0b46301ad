"""Columns are scaled by their mean and deviation over the rows of the train split, which a trained model needs again.

N  rows, D  columns
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_pipeline.errors import DataError
from data_pipeline.parsing import parse_json, parsed_as
from data_pipeline.series.manifest import Name, ScalerEntry, Step

SCALER = "scaler.json"

LARGEST_SCALED = 1e18
"""Deviations from the mean whose square float32 holds."""

LARGEST_FACT = 1e101
"""Magnitude that no mean or deviation reaches, since values do not: what is scaled can be taken back."""

Mean = Annotated[float, Field(ge=-LARGEST_FACT, le=LARGEST_FACT, allow_inf_nan=False)]
Deviation = Annotated[float, Field(gt=0, le=LARGEST_FACT, allow_inf_nan=False)]


class Scaler(BaseModel):
    """It is what `scaler.json` holds: a column is stored as (value - mean) / deviation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    columns: tuple[Name, ...] = Field(min_length=1)
    means: tuple[Mean, ...]
    """Over the rows of the train splits of all series."""
    deviations: tuple[Deviation, ...]
    """The square root of the mean square about the mean; 1 for a column that is constant."""
    step_seconds: Step
    """Time from a row to the next; none where there are no times, or where that differs."""

    @model_validator(mode="after")
    def _columns_agree(self) -> Self:
        if not len(self.columns) == len(self.means) == len(self.deviations):
            raise ValueError("columns, means and deviations are not equally many")
        return self

    @property
    def content(self) -> bytes:
        """It is the file."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @property
    def entry(self) -> ScalerEntry:
        """It is what a manifest says of the file."""
        return ScalerEntry(sha256=hashlib.sha256(self.content).hexdigest())

    def scaled(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """It scales values (..., D) in original units."""
        return ((values - np.array(self.means)) / np.array(self.deviations)).astype(np.float32)

    def original(self, scaled: NDArray[Any]) -> NDArray[np.float64]:
        """It returns scaled values (..., D) in original units."""
        return scaled.astype(np.float64) * np.array(self.deviations) + np.array(self.means)


def parse_scaler(content: bytes, name: object = SCALER) -> Scaler:
    """It reads a file. Raises DataError, which names it, where it is none."""
    with parsed_as(DataError, name):
        parse_json(content)  # refuses what pydantic's parser lets pass, such as a name that stands twice
        return Scaler.model_validate_json(content, strict=True)


def constant_columns(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.bool_]:
    """It tells for each column whether all rows of all parts (N, D) have the same value there."""
    least, most = (of([of(part_ND, axis=0) for part_ND in parts], axis=0) for of in (np.min, np.max))
    constant_D: NDArray[np.bool_] = least == most
    return constant_D


def fitted(
    columns: Sequence[str], parts: Sequence[NDArray[np.float64]], step_seconds: float | None
) -> Scaler:
    """It fits a scaler to the rows of all parts (N, D)."""
    count = sum(map(len, parts))
    means_D = sum(part_ND.sum(0) for part_ND in parts) / count
    # The mean of equal numbers may be another one: what is constant is not told by its deviation.
    constant_D = constant_columns(parts)
    farthest_D = np.max([np.abs(part_ND - means_D).max(0) for part_ND in parts], axis=0)
    farthest_D[constant_D] = 1.0
    # Relative to the farthest, so that squares neither vanish nor overflow.
    squares_D = sum((((part_ND - means_D) / farthest_D) ** 2).sum(0) for part_ND in parts)
    deviations_D = np.where(constant_D, 1.0, farthest_D * np.sqrt(squares_D / count))
    return Scaler(
        columns=tuple(columns),
        means=tuple(means_D.tolist()),
        deviations=tuple(deviations_D.tolist()),
        step_seconds=step_seconds,
    )
