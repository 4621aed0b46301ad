"""time series for forecasting

The command line of `surefoot prepare series`.
"""

import argparse
from collections.abc import Sequence

from data_pipeline.paths import location_argument, path_argument
from data_pipeline.preparing.command_line import exit_code, positive, share
from data_pipeline.series.config import SeriesConfig
from data_pipeline.series.manifest import SeriesManifest
from data_pipeline.series.prepare import Prepared, SeriesSettings, prepare_series
from data_pipeline.series.splits import Months, Shares
from data_pipeline.series.table import TableForm
from data_pipeline.series.times import MICROSECOND
from data_pipeline.series.windows import Windows
from data_pipeline.shown import CommandLine, shown

DESCRIPTION = (
    "Read time series (CSV: a header, a column of times, columns of numbers), scale their columns by the train rows, "
    "write train, validation and test splits. Nothing is filled in or resampled."
)
HORIZONS = (96, 192, 336, 720)
"""Those that published results are of."""


def main(arguments: Sequence[str]) -> int:
    """It runs the command line and returns the exit code."""
    parser = _parser()
    settings = _settings(parser, parser.parse_args(arguments))
    return exit_code(lambda: _report(settings, prepare_series(settings)))


def _settings(parser: argparse.ArgumentParser, given: argparse.Namespace) -> SeriesSettings:
    if given.time_column and given.no_times:
        parser.error(
            "--time-column names a column of times, and --no-times says there is none; give one of them"
        )
    if given.uneven and given.no_times:
        parser.error("--uneven is about times, and --no-times says there are none; give one of them")
    if len(set(given.columns)) < len(given.columns):
        parser.error("--columns names a column twice; name each once")
    return SeriesSettings(
        files=tuple(given.files),
        out=given.out,
        form=TableForm(given.time_column, not given.no_times, tuple(given.columns), given.uneven),
        cut=_cut(parser, given),
        context=given.context,
        keep_constant=given.keep_constant,
        shard_samples=given.shard_samples,
        overwrite=given.overwrite,
    )


def _cut(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Shares | Months:
    if given.split_months:
        if not given.split_months[0]:
            parser.error("--split-months: train needs a month at least")
        return Months(*given.split_months)
    if not given.splits[0] or abs(sum(given.splits) - 1) > 1e-9:
        parser.error(
            f"--splits: {' + '.join(f'{part:g}' for part in given.splits)} is not 1, or train has none; give parts of 1"
        )
    return Shares(*given.splits)


def _report(settings: SeriesSettings, prepared: Prepared | None) -> None:
    if prepared is None:
        print(f"{shown(settings.out)}: complete already, made with the same settings from the same files")
        return
    summary, train = prepared.summary, prepared.manifests[0]
    step = f", {train.step_seconds * 10**6 * MICROSECOND} apart" if train.step_seconds else ""
    print(
        f"read {summary['rows']:,} rows of {summary['columns']:,} columns{step}, from {summary['series']:,} files of "
        f"{summary['bytes']:,} bytes"
    )
    if summary["uneven_rows"]:
        print(f"  after another step in time than most: {summary['uneven_rows']:,} rows, taken as they come")
    if summary["rows_in_no_split"]:
        print(f"  behind the last split, and in none: {summary['rows_in_no_split']:,} rows")
    for manifest in prepared.manifests:
        print(f"{shown(settings.out / manifest.split)}: {_rows(manifest)}")
        print(f"  {_windows(manifest)}")


def _rows(manifest: SeriesManifest) -> str:
    """It says which rows are in a split."""
    series = manifest.series
    rows = manifest.rows - manifest.context * len(series)
    context = f" behind {manifest.context:,} of context" if manifest.context else ""
    span = f", {series[0].first_time} to {series[0].last_time}" if series[0].first_time else ""
    more = " (of the first)" if span and len(series) > 1 else ""
    return f"{rows:,} rows of {len(series):,} series{context}{span}{more}"


def _windows(manifest: SeriesManifest) -> str:
    """It counts the windows that are usual."""
    lookback = int(SeriesConfig.model_fields["lookback"].default)
    if manifest.split != "train":
        lookback = min(lookback, manifest.context)
    counts = (sum(Windows.of(manifest, lookback, horizon).counts) for horizon in HORIZONS)
    told = (f"{count:,} of {horizon}" for count, horizon in zip(counts, HORIZONS, strict=True))
    return f"windows that read {lookback} rows, by the rows that they forecast: {', '.join(told)}"


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(prog="surefoot prepare series", description=DESCRIPTION)
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        type=location_argument,
        metavar="FILE",
        help="CSV, a series each, all of the same columns; also .gz, .zst, .bz2, .xz",
    )
    add("--out", type=path_argument, required=True, metavar="DIR", help="folder to make")
    _add_columns(parser)
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument(
        "--splits",
        nargs=3,
        type=share_or_all,
        default=(0.7, 0.1, 0.2),
        metavar="F",
        help="parts of each series for train, validation and test, one after another (0.7 0.1 0.2)",
    )
    cut.add_argument(
        "--split-months",
        nargs=3,
        type=count,
        metavar="N",
        help="months of 30 days for them instead (ETT: 12 4 4); rows behind them are left out",
    )
    add(
        "--context",
        type=count,
        default=512,
        metavar="N",
        help="rows before the validation and test splits that their first windows read; a model may read no more "
        "(%(default)s)",
    )
    add(
        "--keep-constant",
        action="store_true",
        help="take columns that are constant in train, with deviation 1",
    )
    add(
        "--shard-samples",
        type=positive,
        default=4096,
        metavar="N",
        help="chunks of 256 rows in a shard (%(default)s)",
    )
    add("--overwrite", action="store_true", help="replace a DIR made with other settings or files")
    return parser


def _add_columns(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--time-column", metavar="NAME", help="the column of times (default: the first)")
    add("--no-times", action="store_true", help="there is no column of times")
    add(
        "--columns",
        nargs="+",
        default=(),
        metavar="NAME",
        help="columns to take, in this order (default: all but the times)",
    )
    add(
        "--uneven",
        action="store_true",
        help="take the rows as they come where times do not rise by equal steps, as published results on Weather do",
    )


def share_or_all(text: str) -> float:
    """It reads a number in [0, 1]."""
    return 1.0 if float(text) == 1 else share(text)


def count(text: str) -> int:
    """It reads a whole number from 0 to 2**31."""
    if not 0 <= (value := int(text)) <= 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {2**31}")
    return value
