"""have a model forecast a time series"""

import argparse

from data_pipeline.paths import path_argument
from data_pipeline.shown import CommandLine
from pretrain.commands.arguments import add_model


def parser() -> argparse.ArgumentParser:
    """It declares the options of `surefoot forecast`."""
    parser = CommandLine(
        prog="surefoot forecast",
        description="Forecast what follows the last rows of a series, in its units, as CSV: a row for each step in "
        "time, with the columns of the model's data. Intervals come from what the model has missed in the windows of "
        "its run's validation data, each step in time and column by itself; it is told how many of the later half of "
        "these windows such intervals from the earlier half cover.",
        epilog="exit codes: 0 done, 2 configuration or command line, 3 data, 4 no usable checkpoint, 130 interrupted",
    )
    add_model(parser, "the folder of a checkpoint, or of an export with tensors by our own names")
    add = parser.add_argument
    add(
        "series",
        type=path_argument,
        metavar="FILE",
        help="CSV with the columns of the model's data, by their names; also .gz, .zst, .bz2, .xz",
    )
    add("--time-column", metavar="NAME", help="the column of times (default: the first)")
    add("--no-times", action="store_true", help="there is no column of times")
    add(
        "--level",
        type=level,
        default=0.9,
        metavar="P",
        help="share of the truth that intervals are to cover; 0: no intervals, and no validation data is read "
        "(%(default)s)",
    )
    add("--data", metavar="DIR", help="prepared data to take intervals from, in place of the run's")
    add(
        "--out",
        type=path_argument,
        dest="forecasts",
        metavar="FILE",
        help="write there instead of to standard output",
    )
    add(
        "--plot",
        type=path_argument,
        metavar="FILE.png",
        help="draw the forecast behind the last rows (needs matplotlib)",
    )
    return parser


def level(text: str) -> float:
    """It reads the share that intervals are to cover."""
    number = float(text)
    if not 0 <= number < 1:  # nor is NaN
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, not {text}")
    return number
