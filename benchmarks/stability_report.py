"""Table and plots of benchmarks/stability.py, from the runs that it has written down.

python benchmarks/stability.py    writes them; this module is imported by it and does nothing by itself
"""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

MARGIN = 0.5
"""Nats above the arm's own best from which a final loss counts as failed."""
SHOWN_RATES = (3e-3, 1e-2)
"""Learning rates whose course over the run is tabulated and drawn; chosen before the first run."""
THINNED = 10
"""Every so many steps one value goes into stability.json."""
Measures = dict[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class Run:
    """One cell: an arm, a learning rate and a seed."""

    arm: str
    learning_rate: float
    seed: int
    parameters: int
    steps: int
    finite: bool
    losses: list[float]
    gradient_norms: list[float]
    measures: Measures
    """(step, value) pairs by name."""
    validation_loss: float
    seconds: float

    @property
    def final_loss(self) -> float:
        """Mean over the last tenth of the steps; inf for a run that broke off."""
        return statistics.fmean(self.losses[-max(self.steps // 10, 1) :]) if self.finite else math.inf

    def last(self, name: str) -> float:
        """The last value of a measure."""
        return self.measures[name][-1][1] if self.measures[name] else math.nan

    def median(self, name: str) -> float:
        """The median of a measure over the run."""
        values = [value for _, value in self.measures[name]]
        return statistics.median(values) if values else math.nan

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Summary:
    """One arm over all learning rates and seeds."""

    arm: str
    runs: tuple[Run, ...]
    unigram: float

    @property
    def rates(self) -> list[float]:
        return sorted({run.learning_rate for run in self.runs})

    def at(self, rate: float) -> list[Run]:
        return [run for run in self.runs if run.learning_rate == rate]

    def mean(self, rate: float, value: Callable[[Run], float]) -> float:
        """Over the seeds."""
        values = [value(run) for run in self.at(rate)]
        return statistics.fmean(values) if values else math.nan

    def final_loss(self, rate: float) -> float:
        return self.mean(rate, lambda run: run.final_loss)

    @property
    def best_rate(self) -> float:
        return min(self.rates, key=self.final_loss)

    @property
    def best_loss(self) -> float:
        return self.final_loss(self.best_rate)

    def failed(self, run: Run) -> bool:
        return not run.finite or run.final_loss > min(self.unigram, self.best_loss + MARGIN)

    def failures(self, rate: float) -> int:
        return sum(self.failed(run) for run in self.at(rate))

    @property
    def diverges_at(self) -> float | None:
        """None when no learning rate from the best one upwards has failed."""
        failing = [rate for rate in self.rates if rate >= self.best_rate and self.failures(rate)]
        return min(failing, default=None)


def read_runs(journal: Path) -> list[Run]:
    """All runs of a journal; none where there is no journal."""
    if not journal.is_file():
        return []
    return [Run(**json.loads(line)) for line in journal.read_text().splitlines()]


def write_report(runs: Sequence[Run], unigram: float, arms: Iterable[str], folder: Path) -> str:
    """Write stability.md, stability.json and the plots; returns the tables."""
    by_arm = {arm: tuple(run for run in runs if run.arm == arm) for arm in arms}
    summaries = [Summary(arm, own, unigram) for arm, own in by_arm.items() if own]
    tables = "\n\n".join(
        [arms_table(summaries), rates_table(summaries)]
        + [course_table(summaries, rate) for rate in SHOWN_RATES]
    )
    (folder / "stability.md").write_text(tables + "\n")
    (folder / "stability.json").write_text(
        json.dumps(as_data(summaries, unigram), separators=(",", ":")) + "\n"
    )
    plot_losses(summaries, unigram, folder / "stability-loss.png")
    plot_courses(summaries, folder / "stability-course.png")
    return tables


# Tables


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arms_table(summaries: Sequence[Summary]) -> str:
    head = ["arm", "parameters", "best LR", "final loss there", "validation loss there", "diverges at LR"]
    rows = []
    for one in summaries:
        validation = one.mean(one.best_rate, lambda run: run.validation_loss)
        limit = f"{one.diverges_at:g}" if one.diverges_at else f"> {one.rates[-1]:g}"
        row = [one.arm, f"{one.runs[0].parameters:,}", f"{one.best_rate:g}", f"{one.best_loss:.3f}"]
        rows.append([*row, f"{validation:.3f}", limit])
    return table(head, rows)


def rates_table(summaries: Sequence[Summary]) -> str:
    """Final loss of every cell, mean over seeds, (failed / seeds) where any failed."""
    rates = sorted({rate for one in summaries for rate in one.rates})

    def cell(one: Summary, rate: float) -> str:
        count = len(one.at(rate))
        if not count:
            return "not run"
        loss = f"{one.final_loss(rate):.3f}"
        losses = f"{loss} x{count}" if count > 1 else loss
        return f"{losses} (failed {one.failures(rate)}/{count})" if one.failures(rate) else losses

    head = ["final loss at LR", *(f"{rate:g}" for rate in rates)]
    return table(head, [[one.arm, *(cell(one, rate) for rate in rates)] for one in summaries])


def course_table(summaries: Sequence[Summary], rate: float) -> str:
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


def as_data(summaries: Sequence[Summary], unigram: float) -> dict[str, Any]:
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


def thinned(run: Run) -> dict[str, Any]:
    points = {
        name: [[step, short(value)] for step, value in pairs if step % THINNED == 0]
        for name, pairs in run.measures.items()
    }
    return {
        "arm": run.arm,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "steps_taken": len(run.losses),
        "finite": run.finite,
        "final_loss": short(run.final_loss),
        "validation_loss": short(run.validation_loss),
        "seconds": short(run.seconds),
        "losses": [short(loss) for loss in run.losses[THINNED - 1 :: THINNED]],
        **points,
    }


def short(value: float) -> float | None:
    """Four digits; None for what JSON has no number for."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


# Plots


def plot_losses(summaries: Sequence[Summary], unigram: float, path: Path) -> None:
    """Final loss over the learning rate: a line through the means, a dot for each seed, a cross where it failed."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    ceiling = unigram + 1.5
    for number, one in enumerate(summaries):
        style = styled(number)
        means = [min(one.final_loss(rate), ceiling) for rate in one.rates]
        axes.plot(one.rates, means, label=one.arm, **style)
        for run in one.runs:
            marker = "x" if one.failed(run) else "o"
            axes.plot(
                run.learning_rate, min(run.final_loss, ceiling), marker, color=style["color"], markersize=6
            )
    axes.axhline(unigram, color="gray", linewidth=0.8, linestyle="--", label="unigram model")
    axes.set(
        xscale="log",
        xlabel="learning rate (constant, no warmup)",
        ylabel="final training loss, nats per token",
    )
    axes.set_title(f"x: failed; values above {ceiling:.1f} and non-finite runs are drawn there", fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def plot_courses(summaries: Sequence[Summary], path: Path) -> None:
    """Loss and probes over the steps, first seed, one column for each shown learning rate."""
    figure = Figure(figsize=(11, 14), layout="constrained")
    names = {
        "loss (mean of 10 steps)": None,
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
            if name and "variance" in name:
                axes.set_yscale("log")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    grid[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=70)


def draw_course(axes: Axes, number: int, one: Summary, rate: float, name: str | None) -> None:
    runs = sorted(one.at(rate), key=lambda run: run.seed)
    if not runs:
        return
    pairs = runs[0].measures[name] if name else in_tens(runs[0].losses)
    axes.plot(*zip(*pairs, strict=True), label=one.arm, **styled(number))


def in_tens(losses: Sequence[float]) -> list[tuple[int, float]]:
    starts = range(0, len(losses), 10)
    return [
        (start + len(losses[start : start + 10]), statistics.fmean(losses[start : start + 10]))
        for start in starts
    ]


def styled(number: int) -> dict[str, Any]:
    """A colour for each arm, and another dash for every second."""
    return {"color": f"C{number}", "linestyle": ("-", "--")[number % 2], "linewidth": 1.2}
