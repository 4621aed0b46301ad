"""What a task whose models forecast series says about it.

B  windows, D  columns, L  steps in time that are read, H  steps in time that are forecast
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.batches import Batch

Values = NDArray[np.float64]
"""In the units of a series."""


@dataclass(frozen=True)
class SeriesFile:
    """It says how a file with a series is to be read."""

    path: str
    time_column: str | None = None
    """Name of the column of times; none: the first one."""
    has_times: bool = True


@dataclass(frozen=True)
class Past:
    """It is what a forecast is made from."""

    values_LD: Values
    times_L: Sequence[str]
    """Of its rows; where a file has none, their numbers from 0."""
    time_column: str
    future_H: Sequence[str]
    """Times that the forecast is for."""


class Forecaster(ABC):
    """It takes the end of a series to what a model reads, and what the model says to values in the series' units."""

    columns: Sequence[str]
    """Names, in the order of D."""
    horizon: int

    @abstractmethod
    def read(self, file: SeriesFile) -> Past:
        """It reads the last L rows of a file. Raises DataError, which names it, for what is no series for the model."""

    @abstractmethod
    def inputs(self, past: Past) -> tuple[Tensor, ...]:
        """It returns what feeds the first layer, for one window."""

    @abstractmethod
    def values(self, outputs: Any) -> Values:
        """It returns the outputs of the last layer in the units of the series, (B, H, D).

        Raises CheckpointError where the outputs are no numbers.
        """

    @abstractmethod
    def residuals(self, outputs: Any, batch: Batch) -> Values:
        """It returns how far the truth is above the outputs for the windows of a batch that count, (B, H, D)."""
