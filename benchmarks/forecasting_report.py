"""Plots of what benchmarks/forecasting.py, toy_forecasting.py and sharp_language_models.py have written down.

    python benchmarks/forecasting_report.py --etth1 runs.jsonl --toy toy.jsonl --language sharp_language_models.jsonl

It needs matplotlib. Writes forecasting-etth1.png, forecasting-toy.png and sharpness-language.png, of the journals that
are given.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isfinite, log
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, Any]

PAPER = {96: 0.381, 192: 0.409, 336: 0.423, 720: 0.427}
"""Test errors of SAMformer on ETTh1 (arXiv 2402.10198, table 1), from memory and from what others quote."""
CHANNELS = 7


def rows_of(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def plot_etth1(rows: Iterable[Row], path: Path) -> None:
    """It draws the test error of each model by horizon: means, and the seeds as dots."""
    errors: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        errors[row["arm"]][row["horizon"]][row["seed"]] = row["test_mse"]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
    axes.plot([*map(str, PAPER)], [*PAPER.values()], "k--", label="SAMformer, paper")
    for arm, by_horizon in sorted(errors.items()):
        if set(by_horizon) != set(PAPER):
            continue
        means = [fmean(by_horizon[horizon].values()) for horizon in PAPER]
        (line,) = axes.plot([*map(str, PAPER)], means, label=arm)
        for horizon in PAPER:
            seeds = [*by_horizon[horizon].values()]
            axes.plot([str(horizon)] * len(seeds), seeds, ".", color=line.get_color(), markersize=4)
    axes.set(xlabel="horizon", ylabel="test MSE, scaled", title="ETTh1, lookback 512")
    figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(path, dpi=75)


class Panel(NamedTuple):
    """It is a plot over the epochs."""

    title: str
    measures: tuple[str, ...]
    """The first has a solid line, others dashed ones."""
    logarithmic: bool = False
    levels: tuple[float, ...] = ()


TOY = (
    Panel("test loss, and train loss dashed", ("test", "train"), logarithmic=True, levels=(1.0074,)),
    Panel("entropy, and that of test windows dashed", ("entropy", "test_entropy"), levels=(log(CHANNELS),)),
    Panel("weight of a channel to itself, and on test windows dashed", ("identity", "test_identity")),
    Panel("largest eigenvalue", ("sharpness",), logarithmic=True),
)


def plot_toy(rows: Sequence[Row], path: Path) -> None:
    """It draws the course of each arm, the mean over its seeds."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    arms: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        arms[row["arm"]].append(row)
    for axes, panel in zip(figure.subplots(2, 2).flat, TOY, strict=True):
        for number, (arm, own) in enumerate(arms.items()):
            for style, measure in zip(("-", "--"), panel.measures, strict=False):
                draw_mean(axes, own, measure, color=f"C{number}", linestyle=style, label=arm * (style == "-"))
        for level in panel.levels:
            axes.axhline(level, color="black", linewidth=0.7, linestyle=":")
        axes.set(title=panel.title, xlabel="epoch", xscale="symlog", xlim=(0, None))
        if panel.logarithmic:
            axes.set_yscale("log")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=75)


def draw_mean(axes: Axes, rows: Sequence[Row], measure: str, **style: Any) -> None:
    epochs = [look["epoch"] for look in rows[0]["looks"] if measure in look]
    values = [
        fmean(look[measure] for row in rows for look in row["looks"] if look["epoch"] == epoch)
        for epoch in epochs
    ]
    axes.plot(epochs, values, marker=".", **style)


LANGUAGE: Sequence[tuple[str, Callable[[Row], float]]] = (
    ("validation loss, nats a byte", lambda row: row["validation"]),
    ("largest eigenvalue", lambda row: row["sharpness"]),
)


def plot_language(rows: Iterable[Row], path: Path) -> None:
    """It draws loss and largest eigenvalue at the end by learning rate, a line a rho."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    by_rho: dict[float, list[Row]] = defaultdict(list)
    for row in rows:
        by_rho[row["rho"]].append(row)
    for axes, (title, value) in zip(figure.subplots(1, 2), LANGUAGE, strict=True):
        for rho, own in sorted(by_rho.items()):
            rates = sorted({row["rate"] for row in own if isfinite(value(row))})
            means = [fmean(value(row) for row in own if row["rate"] == rate) for rate in rates]
            axes.plot(rates, means, marker="o", label=f"rho = {rho:g}")
        axes.set(title=title, xlabel="learning rate", xscale="log")
    axes.set_yscale("log")
    figure.axes[0].legend()
    figure.savefig(path, dpi=75)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("--etth1", "--toy", "--language"):
        parser.add_argument(name, type=Path, help="journal")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/results")
    options = parser.parse_args()
    if options.etth1:
        plot_etth1(rows_of(options.etth1), options.out / "forecasting-etth1.png")
    if options.toy:
        plot_toy(rows_of(options.toy), options.out / "forecasting-toy.png")
    if options.language:
        plot_language(rows_of(options.language), options.out / "sharpness-language.png")


if __name__ == "__main__":
    main()
