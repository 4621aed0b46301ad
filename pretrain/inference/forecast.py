"""A model forecasts a series, with intervals from what it has missed before.

N  windows, H  steps in time that are forecast, D  columns
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from pretrain.inference.model import LoadedModel
from pretrain.tasks.forecaster import Forecaster, Past, Values

FEWEST_WINDOWS = 20
"""Below it there is nothing to tell intervals from."""


@dataclass(frozen=True)
class Intervals:
    """They say how far truth was above forecasts, for each step in time and column by itself."""

    level: float
    """The share of windows whose truth lay between the two."""
    lower_HD: Values
    upper_HD: Values
    windows: int
    """Windows that they were taken from."""
    coverage: float
    """The share of the truth of the later half of the windows that such intervals from the earlier half cover."""

    def around(self, values_HD: Values) -> tuple[Values, Values]:
        """It returns the bounds of a forecast."""
        return values_HD + self.lower_HD, values_HD + self.upper_HD


@torch.no_grad()
def forecast(model: LoadedModel, forecaster: Forecaster, past: Past) -> Values:
    """It returns the forecast (H, D). Raises CheckpointError where the model has diverged."""
    inputs = (tensor.to(model.mesh.device) for tensor in forecaster.inputs(past))
    values_HD: Values = forecaster.values(model.layers(*inputs))[0]
    return values_HD


@torch.no_grad()
def residuals(
    model: LoadedModel, forecaster: Forecaster, batches: Iterable[Batch], every: int
) -> NDArray[np.float32]:
    """It returns how far truth is above the forecasts of every `every`-th window that counts, in the order of the
    batches, (N, H, D). Raises DataError where these are too few to tell anything."""
    found, seen = [], 0
    for batch in batches:
        outputs = model.layers(*(tensor.to(model.mesh.device) for tensor in batch.inputs))
        above_BHD = forecaster.residuals(outputs, batch)
        found.append(above_BHD[-seen % every :: every].astype(np.float32))
        seen += len(above_BHD)
    above_NHD = np.concatenate(found)
    if len(above_NHD) < FEWEST_WINDOWS:
        raise DataError(
            f"there are {len(above_NHD)} windows to take intervals from, and {FEWEST_WINDOWS} are needed; give --data, "
            "or --level 0 for none"
        )
    return above_NHD


def intervals(above_NHD: NDArray[np.float32], level: float) -> Intervals:
    """It returns the intervals that the middle `level` of residuals lies in."""
    half = len(above_NHD) // 2
    lower_HD, upper_HD = bounds(above_NHD[:half], level)
    later_NHD = above_NHD[half:]
    covered = float(((lower_HD <= later_NHD) & (later_NHD <= upper_HD)).mean())
    return Intervals(level, *bounds(above_NHD, level), len(above_NHD), covered)


def bounds(above_NHD: NDArray[np.float32], level: float) -> tuple[Values, Values]:
    """It returns the quantiles (1 - level) / 2 and (1 + level) / 2 over windows, (H, D) each."""
    lower_HD, upper_HD = np.quantile(above_NHD, ((1 - level) / 2, (1 + level) / 2), axis=0)
    return lower_HD.astype(np.float64), upper_HD.astype(np.float64)
