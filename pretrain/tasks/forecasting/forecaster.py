"""Series are forecast by a model with the scaler that its data was made with.

B  windows, D  columns, L  steps in time that are read, H  steps in time that are forecast
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from data_pipeline.series.batch import SeriesBatch
from data_pipeline.series.config import SeriesConfig
from data_pipeline.series.scaler import Scaler
from data_pipeline.series.splits import scaled_rows
from data_pipeline.series.table import Table, TableForm, read_table
from data_pipeline.series.times import in_words, usual_step
from pretrain.errors import CheckpointError
from pretrain.tasks.forecaster import Forecaster, Past, SeriesFile, Values


class SeriesForecaster(Forecaster):
    """It reads the columns of the model's own data, by their names, at the same steps in time."""

    def __init__(self, data: SeriesConfig, scaler: Scaler) -> None:
        self.columns, self.horizon = scaler.columns, data.horizon
        self._lookback, self._scaler = data.lookback, scaler

    def read(self, file: SeriesFile) -> Past:
        uneven = self._scaler.step_seconds is None
        form = TableForm(file.time_column, file.has_times, self._scaler.columns, uneven)
        table = read_table(file.path, form)
        if len(table) < self._lookback:
            raise DataError(f"{table.name}: has {len(table):,} rows, and the model reads {self._lookback:,}")
        self._check_step(table)
        rows = range(len(table) - self._lookback, len(table))
        scaled_rows(table, slice(rows.start, rows.stop), self._scaler)  # refuses what the model cannot read
        return Past(
            table.values_ND[rows.start :],
            [table.time(row) or str(row) for row in rows],
            table.time_column if table.times_N is not None else "row",
            self._future(table),
        )

    def inputs(self, past: Past) -> tuple[Tensor, ...]:
        return (torch.from_numpy(self._scaler.scaled(past.values_LD).T[None].copy()),)

    def values(self, outputs: Tensor) -> Values:
        if not outputs.isfinite().all():
            raise CheckpointError(
                "the model computes no numbers (NaN or infinity); choose another checkpoint"
            )
        return self._scaler.original(outputs.transpose(1, 2).double().cpu().numpy())

    def residuals(self, outputs: Tensor, batch: Batch) -> Values:
        assert isinstance(batch, SeriesBatch)
        counted_B = batch.weights_B > 0
        above_BDH = (batch.y_BDH - outputs.cpu())[counted_B]
        return above_BDH.transpose(1, 2).double().numpy() * np.array(self._scaler.deviations)

    def _check_step(self, table: Table) -> None:
        expected, found = self._scaler.step_seconds, table.step_seconds
        if table.times_N is not None and expected is not None and found != expected:
            raise DataError(
                f"{table.name}: rows are {found:g} s apart, and {expected:g} s in the data of the model; resample it"
            )

    def _future(self, table: Table) -> Sequence[str]:
        """The times behind the last row, at the step that most rows have."""
        ahead = range(1, self.horizon + 1)
        if table.times_N is None:
            return [str(len(table) - 1 + step) for step in ahead]
        last, step = int(table.times_N[-1]), usual_step(table.times_N)
        try:
            return [in_words(last + number * step, table.zoned) for number in ahead]
        except OverflowError as error:
            raise DataError(
                f"{table.name}: the forecast ends behind the year 9999, the last one of times"
            ) from error
