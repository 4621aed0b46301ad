"""`surefoot forecast` loads a model, tells which, and writes what follows a series."""

import argparse
import csv
import io
import sys
from collections.abc import Iterator, Sequence

from data_pipeline.shown import shown
from parallel.mesh import ParallelMesh
from pretrain.commands.files_to_write import check_apart_from_data, written
from pretrain.commands.forecast.plot import need_matplotlib, plotted
from pretrain.commands.held_out import held_out, sound_batches
from pretrain.commands.output import write
from pretrain.errors import ConfigurationError
from pretrain.export.opened import Usable, open_model, told
from pretrain.inference.forecast import Intervals, forecast, intervals, residuals
from pretrain.inference.model import LoadedModel, load_model
from pretrain.tasks.forecaster import Forecaster, Past, SeriesFile, Values
from pretrain.tasks.registry import TASKS

LARGEST_RESIDUALS = 2**26
"""Numbers that are kept at once: of longer validation sets fewer windows are taken."""


def run(options: argparse.Namespace) -> int:
    """It forecasts what follows a series."""
    if options.plot:
        need_matplotlib()
    checkpoint = open_model(options.model)
    config = checkpoint.config
    check_apart_from_data(options, config.data)
    forecaster = TASKS[config.model.kind].forecaster(config.model, config.data, checkpoint.companion)
    if forecaster is None:
        raise ConfigurationError(
            f"{shown(checkpoint.folder)}: holds a model of kind {config.model.kind}, which is none that forecasts"
        )
    print(f"surefoot forecast: {told(options.model, checkpoint)}", file=sys.stderr)
    past = forecaster.read(SeriesFile(str(options.series), options.time_column, not options.no_times))
    model = load_model(
        config.model, config.data, config.precision.dtype, checkpoint.tensors, ParallelMesh.alone()
    )
    values_HD = forecast(model, forecaster, past)
    around = found_intervals(model, forecaster, checkpoint, options) if options.level else None
    text = "".join(rows(forecaster.columns, past, values_HD, around))
    if options.plot:
        written("--plot", options.plot, plotted(forecaster.columns, past, values_HD, around))
    if options.forecasts:
        written("--out", options.forecasts, text)
    else:
        write([text])
    return 0


def found_intervals(
    model: LoadedModel, forecaster: Forecaster, checkpoint: Usable, options: argparse.Namespace
) -> Intervals:
    """It returns intervals from validation data, and tells how good they are there. Raises DataError."""
    with held_out(checkpoint, options.data, None, "--data, or --level 0 for no intervals") as (name, data):
        numbers = len(data) * model.data.global_batch_size * forecaster.horizon * len(forecaster.columns)
        every = -(-numbers // LARGEST_RESIDUALS)
        above_NHD = residuals(model, forecaster, sound_batches(checkpoint, data), every)
    found = intervals(above_NHD, options.level)
    print(
        f"surefoot forecast: intervals of {found.level:.1%} from {found.windows:,} windows of {name}; those from the "
        f"earlier half cover {found.coverage:.1%} of the later half",
        file=sys.stderr,
    )
    return found


def rows(columns: Sequence[str], past: Past, values_HD: Values, around: Intervals | None) -> Iterator[str]:
    """It yields the lines of the CSV: times, then each column, with the bounds of its interval if there are any."""
    parts = [values_HD, *(around.around(values_HD) if around else ())]
    endings = ("", "_lower", "_upper")[: len(parts)]
    yield line([past.time_column, *(f"{name}{ending}" for name in columns for ending in endings)])
    for step, time in enumerate(past.future_H):
        numbers = (part_HD[step, column] for column in range(len(columns)) for part_HD in parts)
        yield line([time, *(f"{number:.7g}" for number in numbers)])


def line(cells: Sequence[str]) -> str:
    """It returns a line of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
