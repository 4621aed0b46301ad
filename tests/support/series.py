"""Small time series whose rows can be told apart, as CSV and prepared."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.series.batch import SeriesBatch
from data_pipeline.series.config import SeriesConfig
from data_pipeline.series.prepare import SeriesSettings, prepare_series
from data_pipeline.series.splits import Shares
from data_pipeline.series.table import TableForm

START = datetime(2016, 7, 1)
COLUMNS = ("row", "wave", "noise")


def series_values(rows: int, number: int = 0) -> NDArray[np.float64]:
    """It returns series `number` (rows, 3): the first column counts rows on through all series."""
    row_N = np.arange(rows)
    noise_N = np.random.default_rng(number).normal(size=rows)
    return np.stack((row_N + 10_000.0 * number, np.sin(row_N / 5), noise_N), 1)


def write_csv(path: Path, values_ND: NDArray[np.float64]) -> Path:
    """It writes hourly rows."""
    rows = [
        f"{START + timedelta(hours=row)},{','.join(map(repr, values))}\n"
        for row, values in enumerate(values_ND.tolist())
    ]
    path.write_text(f"date,{','.join(COLUMNS)}\n" + "".join(rows))
    return path


def write_series(folder: Path, *rows: int, context: int = 20, shares: Shares | None = None) -> Path:
    """It prepares series 0, 1, ... of so many rows, in shards of 2 chunks; returns `folder`."""
    files = [
        write_csv(folder.with_name(f"{folder.name}-{n}.csv"), series_values(c, n)) for n, c in enumerate(rows)
    ]
    settings = SeriesSettings(
        files=tuple(map(str, files)),
        out=folder,
        form=TableForm(),
        cut=shares or Shares(0.7, 0.1, 0.2),
        context=context,
        keep_constant=False,
        shard_samples=2,
        overwrite=False,
    )
    assert prepare_series(settings)
    return folder


def series_config(*paths: object, weights: tuple[float, ...] = (), **settings: object) -> SeriesConfig:
    """It returns a configuration that reads `paths`, with windows of 16 + 8 rows and a global batch of 24."""
    weights = weights or (1.0,) * len(paths)
    sources = [{"path": str(path), "weight": weight} for path, weight in zip(paths, weights, strict=True)]
    defaults = {
        "channels": len(COLUMNS),
        "lookback": 16,
        "horizon": 8,
        "micro_batch_size": 4,
        "global_batch_size": 24,
        "prefetch_steps": 0,
    }
    return SeriesConfig.model_validate({"sources": sources, **defaults, **settings})


def window_starts(step: list[SeriesBatch], mean: float, deviation: float) -> list[int]:
    """It returns the row, counted through all series, that each window begins with; -1 for a masked one."""
    return [
        round(float(x_DL[0, 0]) * deviation + mean) if weight else -1
        for batch in step
        for x_DL, weight in zip(batch.x_BDL, batch.weights_B.tolist(), strict=True)
    ]
