"""Runs of a grid of arms, learning rates and seeds as they are written down, and what their reports share.

benchmarks/stability_report.py and depth_report.py use it; it does nothing by itself.
"""

import json
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

THINNED = 10
"""Every so many steps one value goes into a report's JSON."""
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
        values = self.measures.get(name)
        return values[-1][1] if values else math.nan

    def median(self, name: str) -> float:
        """The median of a measure over the run."""
        values = [value for _, value in self.measures.get(name, ())]
        return statistics.median(values) if values else math.nan

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(step, value) pairs of a measure; of `loss` and `gradient_norm` means of ten steps."""
        whole = {"loss": self.losses, "gradient_norm": self.gradient_norms}
        return in_tens(whole[name]) if name in whole else self.measures.get(name, [])

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Summary(ABC):
    """One arm over all learning rates and seeds."""

    arm: str
    runs: tuple[Run, ...]
    baseline: float
    """Loss of a model that has learned nothing of what it is given, such as a unigram model."""

    @abstractmethod
    def failed(self, run: Run) -> bool:
        """By the rule of the comparison."""

    @property
    def rates(self) -> list[float]:
        return sorted({run.learning_rate for run in self.runs})

    def at(self, rate: float) -> list[Run]:
        """The runs at a learning rate, by seed."""
        return sorted((run for run in self.runs if run.learning_rate == rate), key=lambda run: run.seed)

    def mean(self, rate: float, value: Callable[[Run], float]) -> float:
        """Over the seeds."""
        values = [value(run) for run in self.at(rate)]
        return statistics.fmean(values) if values else math.nan

    def final_loss(self, rate: float) -> float:
        return self.mean(rate, lambda run: run.final_loss)


def read_runs(journal: Path) -> list[Run]:
    """All runs of a journal; none where there is no journal."""
    if not journal.is_file():
        return []
    return [Run(**json.loads(line)) for line in journal.read_text().splitlines()]


def by_arm(runs: Iterable[Run], arms: Iterable[str]) -> dict[str, tuple[Run, ...]]:
    """Arms that have runs, in their order."""
    found = {arm: tuple(run for run in runs if run.arm == arm) for arm in arms}
    return {arm: own for arm, own in found.items() if own}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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
        "gradient_norms": [short(norm) for norm in run.gradient_norms[THINNED - 1 :: THINNED]],
        **points,
    }


def short(value: float) -> float | None:
    """Four digits; None for what JSON has no number for."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def plot_losses(groups: Mapping[str, Sequence[Summary]], baseline: str, unit: str, path: Path) -> None:
    """Final loss over the learning rate, by group of arms: a line through the means, a dot for each seed, a cross
    where it failed. `baseline` is what the model is called whose loss that is."""
    figure = Figure(figsize=(8 if len(groups) == 1 else 5 * len(groups), 5), layout="constrained")
    for axes, (group, summaries) in zip(
        figure.subplots(1, len(groups), squeeze=False, sharey=True)[0], groups.items(), strict=True
    ):
        draw_losses(axes, summaries, baseline)
        axes.set(xlabel="learning rate (constant, no warmup)", ylabel=f"final training loss, nats per {unit}")
        if group:
            axes.set_title(f"{group}\n{axes.get_title()}", fontsize=9)
    figure.savefig(path, dpi=100 if len(groups) == 1 else 60)


def draw_losses(axes: Axes, summaries: Sequence[Summary], baseline: str) -> None:
    ceiling = summaries[0].baseline + 1.5
    for number, one in enumerate(summaries):
        style = styled(number)
        means = [min(one.final_loss(rate), ceiling) for rate in one.rates]
        axes.plot(one.rates, means, label=one.arm, **style)
        for run in one.runs:
            marker = "x" if one.failed(run) else "o"
            axes.plot(
                run.learning_rate, min(run.final_loss, ceiling), marker, color=style["color"], markersize=6
            )
    axes.axhline(summaries[0].baseline, color="gray", linewidth=0.8, linestyle="--", label=baseline)
    axes.set_xscale("log")
    axes.set_title(f"x: failed; values above {ceiling:.1f} and non-finite runs are drawn there", fontsize=9)
    axes.legend(fontsize=8)


def draw_course(axes: Axes, number: int, one: Summary, rate: float, name: str) -> None:
    """The first seed's curve."""
    for run in one.at(rate)[:1]:
        if pairs := run.curve(name):
            axes.plot(*zip(*pairs, strict=True), label=one.arm, **styled(number))


def in_tens(values: Sequence[float]) -> list[tuple[int, float]]:
    """Means of ten steps, each at the last of them."""
    tens = [values[start : start + 10] for start in range(0, len(values), 10)]
    return [(10 * number + len(ten), statistics.fmean(ten)) for number, ten in enumerate(tens)]


def styled(number: int) -> dict[str, Any]:
    """A colour for each arm, and another dash for every second."""
    return {"color": f"C{number}", "linestyle": ("-", "--")[number % 2], "linewidth": 1.2}
