"""These are the keys of `[data]` for a run that forecasts time series."""

from typing import Literal

from pydantic import Field

from data_pipeline.config import DataConfig

LONGEST = 2**31
"""Steps in time of anything that is read at once."""


class SeriesConfig(DataConfig):
    """Sources, the windows that are cut out of them, and batch sizes; the data order follows from all but the last."""

    kind: Literal["series"] = Field(default="series", repr=False)
    channels: int = Field(gt=0, examples=[7])
    """Columns of the prepared series."""
    lookback: int = Field(default=512, gt=0, lt=LONGEST)
    """Steps in time that a forecast is made from; a validation or test split takes no more than its --context."""
    horizon: int = Field(default=96, gt=0, lt=LONGEST)
    """Steps in time that are forecast."""
    stride: int = Field(default=1, gt=0, lt=LONGEST)
    """Steps in time from the beginning of a training window to that of the next; other splits have a window at each."""

    @property
    def tokens_per_sample(self) -> int:
        """It is the number of steps in time that are read."""
        return self.lookback
