"""The samples of time series are windows: rows that are read, and the rows behind them that are forecast.

A window is cut out of the stored chunks when it is read. Which rows it has follows from its number alone.

    chunks of a series   |-----------|-----------|-----------|----|
    windows                 |==========lookback==========|=horizon=|
                             |==========lookback==========|=horizon=|      one `stride` further

R  rows of a window: lookback + horizon
D  channels
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as
from data_pipeline.series.config import SeriesConfig
from data_pipeline.series.manifest import SeriesManifest
from data_pipeline.shards.arrays import parsed_array
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.shards.storage import Folder

CACHE_BYTES = 256 << 20
"""Of chunks that are kept: neighbouring windows have most of their rows in common."""

STORED = np.dtype("<f4")


@dataclass(frozen=True)
class Windows:
    """They are the windows of a split."""

    rows: int
    """Of a window."""
    first: int
    """The row of a series at which its first window begins: windows of a held-out split begin as late in the context as
    they can, so that their forecasts are of the same rows whatever the lookback."""
    stride: int
    counts: tuple[int, ...]
    """Windows of each series."""

    @classmethod
    def of(cls, manifest: SeriesManifest, lookback: int, horizon: int, stride: int = 1) -> "Windows":
        """It returns the windows that are cut out of a split; `stride` is for that of train."""
        rows, first = lookback + horizon, max(manifest.context - lookback, 0)
        stride = stride if manifest.split == "train" else 1
        counts = (max((entry.rows - first - rows) // stride + 1, 0) for entry in manifest.series)
        return cls(rows, first, stride, tuple(counts))


class WindowDataset(Dataset[SeriesManifest]):
    """It is one split of time series, whose samples are windows with one field, the rows (R, D) in float32.

    A window over a damaged chunk is damaged.
    """

    def __init__(self, folder: Folder, data: SeriesConfig) -> None:
        super().__init__(folder, SeriesManifest)
        manifest = self.manifest
        self._windows = Windows.of(manifest, data.lookback, data.horizon, data.stride)
        self._series_ends = list(accumulate(self._windows.counts))
        chunks = (-(-entry.rows // manifest.chunk_rows) for entry in manifest.series)
        self._chunk_starts = [0, *accumulate(chunks)]
        chunk_bytes = STORED.itemsize * manifest.chunk_rows * manifest.channels
        self._chunk = lru_cache(max(CACHE_BYTES // chunk_bytes, 1))(self._read_chunk)

    def __len__(self) -> int:
        return self._series_ends[-1]

    def read(self, number: int) -> Sample:
        """It returns a window."""
        series, first = self._found(number)
        name, size = self.manifest.series[series].name, self.manifest.chunk_rows
        start = self._chunk_starts[series]
        numbers = range(start + first // size, start + (first + self._windows.rows - 1) // size + 1)
        chunks = [self._chunk(chunk) for chunk in numbers]
        if damage := next((chunk for chunk in chunks if isinstance(chunk, str)), None):
            return Sample(self.name, damage=f"{damage}; window from row {first}", shard=name, number=first)
        rows_ND = np.concatenate([chunk for chunk in chunks if not isinstance(chunk, str)])
        window_RD = rows_ND[first % size :][: self._windows.rows]
        return Sample(self.name, (window_RD.data,), shard=name, number=first)

    def place(self, number: int) -> tuple[str, int]:
        """It returns the series of a window, and the row that it begins with, from 0 at the first row stored of it."""
        series, first = self._found(number)
        return self.manifest.series[series].name, first

    def _found(self, number: int) -> tuple[int, int]:
        """It returns the number of the series that a window is of, and its first row."""
        series = bisect_right(self._series_ends, number)
        within = number - (self._series_ends[series - 1] if series else 0)
        return series, self._windows.first + within * self._windows.stride

    def _read_chunk(self, number: int) -> NDArray[np.float32] | str:
        """It returns the rows of a chunk, or what is wrong where it is damaged. Raises DataError for one that is not
        what the manifest says."""
        chunk = super().read(number)
        if not chunk.fields:
            return chunk.damage
        series = bisect_right(self._chunk_starts, number) - 1
        before = (number - self._chunk_starts[series]) * self.manifest.chunk_rows
        rows = min(self.manifest.series[series].rows - before, self.manifest.chunk_rows)
        with parsed_as(DataError, chunk.place):
            rows_ND = parsed_array(bytes(chunk.fields[0]), STORED, (rows, self.manifest.channels))
            if not np.isfinite(rows_ND).all():
                raise ValueError("holds NaN or infinity; prepare the data again")
        return rows_ND
