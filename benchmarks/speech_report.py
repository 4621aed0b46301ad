"""Tables and plots of benchmarks/speech_depth.py, from the runs that it has written down.

python benchmarks/speech_depth.py    writes them; this module is imported by it and does nothing by itself
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from depth_report import DepthSummary, Panel, as_data, outcomes_table, plot_courses
from grid_report import Run, by_arm, plot_losses, table

SIGMA = " + sigmaReparam"
OPTIMIZERS = ("AdamW", "SGD", "LARS", "Adagrad")
"""Each is an arm, and with `SIGMA` another."""


@dataclass(frozen=True)
class SpeechSummary(DepthSummary):
    """An arm; its baseline is the loss of constant outputs."""

    places: float
    """Loss of outputs that know their place in the utterance, and do not listen."""
    margin: ClassVar[float] = 0.3

    def outcome(self, run: Run) -> str:
        left = super().outcome(run)
        return "begins" if left == "trains" and run.final_loss >= self.places else left


def write_report(runs: Sequence[Run], facts: Mapping[str, float], folder: Path) -> str:
    """Write speech.md, speech.json and the plots; returns the tables.

    `facts` are the losses of outputs that do not listen, and the entropy of uniform attention.
    """
    losses = [facts[f"{name}_loss"] for name in ("constant", "uniform", "places")]
    groups = {}
    for optimizer in OPTIMIZERS:
        own = by_arm(runs, (optimizer, optimizer + SIGMA))
        if own:
            groups[optimizer] = [SpeechSummary(arm, found, *losses) for arm, found in own.items()]
    summaries = [one for group in groups.values() for one in group]
    tables = "\n\n".join([*map(outcomes_table, groups.values()), cells_table(summaries)])
    (folder / "speech.md").write_text(tables + "\n")
    (folder / "speech.json").write_text(json.dumps(as_data(summaries, facts), separators=(",", ":")) + "\n")
    plot_losses(groups, "constant outputs", "unit", folder / "speech-loss.png")
    panels = (
        Panel("loss (mean of 10 steps)", ("loss",), (facts["constant_loss"], facts["places_loss"])),
        Panel(
            "attention entropy",
            ("attention_entropy_mean", "attention_entropy_min"),
            (facts["uniform_entropy"],),
        ),
        Panel("gradient norm (mean of 10 steps)", ("gradient_norm",), logarithmic=True),
        Panel("largest spectral norm", ("sigma_max",), logarithmic=True),
    )
    for optimizer, group in groups.items():
        plot_courses(group, panels, folder / f"speech-course-{optimizer.lower()}.png")
    return tables


def cells_table(summaries: Sequence[SpeechSummary]) -> str:
    """Every cell; of entropies the lowest that a look saw, and what the last one saw, in brackets of the least head."""
    head = ["arm", "LR", "seed", "outcome", "final loss", "validation loss", "unit error rate"]
    head += ["lowest entropy", "last entropy", "gradient norm", "largest spectral norm"]
    rows = []
    for one in summaries:
        for run in sorted(one.runs, key=lambda run: (run.learning_rate, run.seed)):
            means, least = (
                [value for _, value in run.measures[f"attention_entropy_{fold}"]] for fold in ("mean", "min")
            )
            rows.append(
                [one.arm, f"{run.learning_rate:g}", str(run.seed), one.outcome(run)]
                + [
                    f"{run.final_loss:.3f}",
                    f"{run.validation_loss:.3f}",
                    f"{run.last('unit_error_rate'):.1%}",
                ]
                + [
                    f"{min(values):.2f} ({min(lows):.2f})"
                    for values, lows in ((means, least), (means[-1:], least[-1:]))
                ]
                + [f"{run.curve('gradient_norm')[-1][1]:.2g}", f"{run.last('sigma_max'):.2g}"]
            )
    return table(head, rows)
