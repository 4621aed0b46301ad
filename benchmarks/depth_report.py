"""What the reports of deep models share: which runs train, stall or have diverged, and their course over the steps.

benchmarks/translation_report.py and speech_report.py use it; it does nothing by itself.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from grid_report import THINNED, Run, Summary, short, table, thinned
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class DepthSummary(Summary):
    """An arm whose runs train, stall or have diverged."""

    uniform: float
    """Loss of a uniform model."""
    margin: ClassVar[float] = 0.5
    """Nats below the baseline's loss from which a run counts as one that has left it."""

    def outcome(self, run: Run) -> str:
        if not run.finite or run.final_loss > self.uniform:
            return "diverged"
        return "trains" if run.final_loss < self.baseline - self.margin else "stalls"

    def failed(self, run: Run) -> bool:
        return self.outcome(run) in ("diverged", "stalls")


def rates_of(summaries: Iterable[Summary]) -> list[float]:
    return sorted({rate for one in summaries for rate in one.rates})


def outcomes_table(summaries: Sequence[DepthSummary]) -> str:
    """What became of every cell, and its final loss, seed by seed."""

    def cell(one: DepthSummary, rate: float) -> str:
        groups = itertools.groupby(one.at(rate), key=one.outcome)
        losses = [
            f"{outcome} {', '.join(f'{run.final_loss:.2f}' for run in runs)}" for outcome, runs in groups
        ]
        return "; ".join(losses) or "not run"

    rates = rates_of(summaries)
    head = ["at LR", *(f"{rate:g}" for rate in rates)]
    return table(head, [[one.arm, *(cell(one, rate) for rate in rates)] for one in summaries])


class Panel(NamedTuple):
    """A row of plots."""

    title: str
    measures: tuple[str, ...]
    """The first has a solid line, the second a dashed one."""
    levels: tuple[float, ...] = ()
    """Dotted."""
    logarithmic: bool = False


def plot_courses(summaries: Sequence[Summary], panels: Sequence[Panel], path: Path) -> None:
    """Panels over the steps, first seed, one column for each learning rate, one colour an arm."""
    rates = rates_of(summaries)
    figure = Figure(figsize=(3.2 * len(rates), 2.4 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), len(rates), squeeze=False, sharex=True, sharey="row")
    for row, panel in zip(grid, panels, strict=True):
        for axes, rate in zip(row, rates, strict=True):
            draw_panel(axes, panel, summaries, rate)
        row[0].set_ylabel(panel.title, fontsize=9)
    for rate, first, last in zip(rates, grid[0], grid[-1], strict=True):
        first.set_title(f"LR {rate:g}", fontsize=10)
        last.set_xlabel("step")
    grid[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=75)


def draw_panel(axes: Axes, panel: Panel, summaries: Sequence[Summary], rate: float) -> None:
    for number, one in enumerate(summaries):
        for run in one.at(rate)[:1]:
            for name, dash in zip(panel.measures, ("-", "--"), strict=False):
                if curve := run.curve(name):
                    style = {"color": f"C{number}", "linestyle": dash, "linewidth": 1.2}
                    axes.plot(*zip(*curve, strict=True), label=one.arm, **style)
    for level in panel.levels:
        axes.axhline(level, color="gray", linewidth=0.8, linestyle=":")
    if panel.logarithmic:
        axes.set_yscale("log")


def as_data(summaries: Sequence[DepthSummary], facts: Mapping[str, float]) -> dict[str, Any]:
    """Everything, curves thinned."""
    return {
        **{name: short(value) for name, value in facts.items()},
        "margin": summaries[0].margin,
        "parameters": {one.arm: one.runs[0].parameters for one in summaries},
        "every_steps": THINNED,
        "runs": [{"outcome": one.outcome(run), **thinned(run)} for one in summaries for run in one.runs],
    }
