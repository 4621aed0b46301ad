"""Table and plots of benchmarks/translation_depth.py, from the runs that it has written down.

python benchmarks/translation_depth.py    writes them; this module is imported by it and does nothing by itself
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grid_report import THINNED, Run, Summary, by_arm, in_tens, plot_losses, short, table, thinned
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARGIN = 0.5
"""Nats below the unigram model's loss from which a run counts as one that trains."""
KINDS = {"encoder": "encoder", "decoder": "decoder", "cross": "cross-attention"}
"""Of attention, as they are called in measures and on the page."""


@dataclass(frozen=True)
class DepthSummary(Summary):
    """An arm whose runs train, stall or have diverged."""

    uniform: float
    """Loss of a uniform model."""

    def outcome(self, run: Run) -> str:
        if not run.finite or run.final_loss > self.uniform:
            return "diverged"
        return "trains" if run.final_loss < self.unigram - MARGIN else "stalls"

    def failed(self, run: Run) -> bool:
        return self.outcome(run) != "trains"


def write_report(runs: Sequence[Run], facts: Mapping[str, float], arms: Iterable[str], folder: Path) -> str:
    """Write translation.md, translation.json and the plots; returns the tables.

    `facts` are the losses of a unigram and of a uniform model, and by kind the entropy of uniform attention.
    """
    summaries = [
        DepthSummary(arm, own, facts["unigram_loss"], facts["uniform_loss"])
        for arm, own in by_arm(runs, arms).items()
    ]
    tables = f"{outcomes_table(summaries)}\n\n{cells_table(summaries)}"
    (folder / "translation.md").write_text(tables + "\n")
    (folder / "translation.json").write_text(
        json.dumps(as_data(summaries, facts), separators=(",", ":")) + "\n"
    )
    plot_losses(summaries, facts["unigram_loss"], folder / "translation-loss.png")
    plot_courses(summaries, facts, folder / "translation-course.png")
    return tables


def rates_of(summaries: Iterable[Summary]) -> list[float]:
    return sorted({rate for one in summaries for rate in one.rates})


# Tables


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


def cells_table(summaries: Sequence[DepthSummary]) -> str:
    """Every cell with what the last look saw; entropies are means, in brackets that of the least head."""
    head = ["arm", "LR", "seed", "outcome", "final loss", "validation loss", "source gain"]
    head += [*KINDS.values(), "TEV mean", "TEV std"]
    rows = []
    for one in summaries:
        for run in sorted(one.runs, key=lambda run: (run.learning_rate, run.seed)):
            losses = (run.final_loss, run.validation_loss, run.last("source_gain"))
            entropy = [
                f"{run.last(f'entropy_mean/{kind}'):.2f} ({run.last(f'entropy_min/{kind}'):.2f})"
                for kind in KINDS
            ]
            tev = [f"{run.last(name):.3f}" for name in ("tev_mean", "tev_std")]
            row = [one.arm, f"{run.learning_rate:g}", str(run.seed), one.outcome(run)]
            rows.append([*row, *(f"{loss:.3f}" for loss in losses), *entropy, *tev])
    return table(head, rows)


def as_data(summaries: Sequence[DepthSummary], facts: Mapping[str, float]) -> dict[str, Any]:
    """Everything, curves thinned."""
    return {
        **{name: short(value) for name, value in facts.items()},
        "margin": MARGIN,
        "parameters": {one.arm: one.runs[0].parameters for one in summaries},
        "every_steps": THINNED,
        "runs": [{"outcome": one.outcome(run), **thinned(run)} for one in summaries for run in one.runs],
    }


# Plots


def plot_courses(summaries: Sequence[DepthSummary], facts: Mapping[str, float], path: Path) -> None:
    """Loss, entropies and TEV over the steps, first seed, one column for each learning rate, one colour an arm."""
    rates = rates_of(summaries)
    figure = Figure(figsize=(3.2 * len(rates), 12), layout="constrained")
    grid = figure.subplots(2 + len(KINDS), len(rates), squeeze=False, sharex=True, sharey="row")
    for column, rate in zip(grid.T, rates, strict=True):
        for number, one in enumerate(summaries):
            if runs := one.at(rate):
                draw_run(column, number, one.arm, runs[0])
        losses, *attentions, _ = column
        losses.axhline(facts["unigram_loss"], color="gray", linewidth=0.8, linestyle=":")
        for axes, kind in zip(attentions, KINDS, strict=True):
            axes.axhline(facts[kind], color="gray", linewidth=0.8, linestyle=":")
        losses.set_title(f"LR {rate:g}", fontsize=10)
        column[-1].set_xlabel("step")
    names = ["loss (mean of 10 steps)", *(f"entropy, {name}" for name in KINDS.values()), "TEV mean"]
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=9)
    grid[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=75)


def draw_run(column: Sequence[Axes], number: int, arm: str, run: Run) -> None:
    """Solid lines are means; dashed ones, of entropies, the least head."""
    losses, *attentions, tev = column
    style = {"color": f"C{number}", "linewidth": 1.2}
    losses.plot(*zip(*in_tens(run.losses), strict=True), label=arm, **style)
    curves = [(tev, "tev_mean", "-")]
    for axes, kind in zip(attentions, KINDS, strict=True):
        curves += [(axes, f"entropy_mean/{kind}", "-"), (axes, f"entropy_min/{kind}", "--")]
    for axes, name, dash in curves:
        if pairs := run.measures.get(name):
            axes.plot(*zip(*pairs, strict=True), linestyle=dash, **style)
