"""Table and plots of benchmarks/stability.py, from the runs that it has written down.

python benchmarks/stability.py    writes them; this module is imported by it and does nothing by itself
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grid_report import THINNED, Run, Summary, by_arm, draw_course, plot_losses, table, thinned
from matplotlib.figure import Figure

MARGIN = 0.5
"""Nats above the arm's own best from which a final loss counts as failed."""
SHOWN_RATES = (3e-3, 1e-2)
"""Learning rates whose course over the run is tabulated and drawn; chosen before the first run."""


@dataclass(frozen=True)
class StabilitySummary(Summary):
    """An arm whose runs are measured by the best that it can do."""

    @property
    def best_rate(self) -> float:
        return min(self.rates, key=self.final_loss)

    @property
    def best_loss(self) -> float:
        return self.final_loss(self.best_rate)

    def failed(self, run: Run) -> bool:
        return not run.finite or run.final_loss > min(self.baseline, self.best_loss + MARGIN)

    def failures(self, rate: float) -> int:
        return sum(self.failed(run) for run in self.at(rate))

    @property
    def diverges_at(self) -> float | None:
        """None when no learning rate from the best one upwards has failed."""
        failing = [rate for rate in self.rates if rate >= self.best_rate and self.failures(rate)]
        return min(failing, default=None)


def write_report(runs: Sequence[Run], unigram: float, arms: Iterable[str], folder: Path) -> str:
    """Write stability.md, stability.json and the plots; returns the tables."""
    summaries = [StabilitySummary(arm, own, unigram) for arm, own in by_arm(runs, arms).items()]
    tables = "\n\n".join(
        [arms_table(summaries), rates_table(summaries)]
        + [course_table(summaries, rate) for rate in SHOWN_RATES]
    )
    (folder / "stability.md").write_text(tables + "\n")
    (folder / "stability.json").write_text(
        json.dumps(as_data(summaries, unigram), separators=(",", ":")) + "\n"
    )
    plot_losses({"": summaries}, "unigram model", "token", folder / "stability-loss.png")
    plot_courses(summaries, folder / "stability-course.png")
    return tables


# Tables


def arms_table(summaries: Sequence[StabilitySummary]) -> str:
    head = ["arm", "parameters", "best LR", "final loss there", "validation loss there", "diverges at LR"]
    rows = []
    for one in summaries:
        validation = one.mean(one.best_rate, lambda run: run.validation_loss)
        limit = f"{one.diverges_at:g}" if one.diverges_at else f"> {one.rates[-1]:g}"
        row = [one.arm, f"{one.runs[0].parameters:,}", f"{one.best_rate:g}", f"{one.best_loss:.3f}"]
        rows.append([*row, f"{validation:.3f}", limit])
    return table(head, rows)


def rates_table(summaries: Sequence[StabilitySummary]) -> str:
    """Final loss of every cell, mean over seeds, (failed / seeds) where any failed."""
    rates = sorted({rate for one in summaries for rate in one.rates})

    def cell(one: StabilitySummary, rate: float) -> str:
        count = len(one.at(rate))
        if not count:
            return "not run"
        loss = f"{one.final_loss(rate):.3f}"
        losses = f"{loss} x{count}" if count > 1 else loss
        return f"{losses} (failed {one.failures(rate)}/{count})" if one.failures(rate) else losses

    head = ["final loss at LR", *(f"{rate:g}" for rate in rates)]
    return table(head, [[one.arm, *(cell(one, rate) for rate in rates)] for one in summaries])


def course_table(summaries: Sequence[StabilitySummary], rate: float) -> str:
    """What the probes saw at one learning rate, mean over seeds."""
    head = [f"at LR {rate:g}", "seeds", "final loss", "TEV mean", "TEV std", "entropy mean", "entropy min"]
    head += ["gradient variance", "of the embedding"]
    rows = []
    for one in summaries:
        if not one.at(rate):
            continue
        tev = [f"{one.mean(rate, lambda run, n=n: run.last(n)):.4f}" for n in ("tev_mean", "tev_std")]
        names = ("attention_entropy_mean", "attention_entropy_min")
        entropy = [f"{one.mean(rate, lambda run, n=n: run.last(n)):.3f}" for n in names]
        names = ("gradient_variance", "gradient_variance/embedding")
        variance = [f"{one.mean(rate, lambda run, n=n: run.median(n)):.3g}" for n in names]
        rows.append(
            [one.arm, str(len(one.at(rate))), f"{one.final_loss(rate):.3f}", *tev, *entropy, *variance]
        )
    return table(head, rows)


def as_data(summaries: Sequence[StabilitySummary], unigram: float) -> dict[str, Any]:
    """Everything, curves thinned."""
    runs = [run for one in summaries for run in one.runs]
    return {
        "unigram_loss": unigram,
        "margin": MARGIN,
        "arms": {
            one.arm: {
                "parameters": one.runs[0].parameters,
                "best_rate": one.best_rate,
                "diverges_at": one.diverges_at,
            }
            for one in summaries
        },
        "every_steps": THINNED,
        "runs": [thinned(run) for run in runs],
    }


# Plots


def plot_courses(summaries: Sequence[StabilitySummary], path: Path) -> None:
    """Loss and probes over the steps, first seed, one column for each shown learning rate."""
    figure = Figure(figsize=(11, 14), layout="constrained")
    names = {
        "loss (mean of 10 steps)": "loss",
        "TEV mean": "tev_mean",
        "TEV std": "tev_std",
        "attention entropy, mean": "attention_entropy_mean",
        "gradient variance": "gradient_variance",
        "gradient variance, embedding": "gradient_variance/embedding",
    }
    grid = figure.subplots(len(names), len(SHOWN_RATES), squeeze=False, sharex=True)
    for row, (title, name) in zip(grid, names.items(), strict=True):
        for axes, rate in zip(row, SHOWN_RATES, strict=True):
            for number, one in enumerate(summaries):
                draw_course(axes, number, one, rate, name)
            axes.set_title(f"{title}, LR {rate:g}", fontsize=9)
            if "variance" in name:
                axes.set_yscale("log")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    grid[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=70)
