"""Table and plots of benchmarks/translation_depth.py, from the runs that it has written down.

python benchmarks/translation_depth.py    writes them; this module is imported by it and does nothing by itself
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from depth_report import DepthSummary, Panel, as_data, outcomes_table, plot_courses
from grid_report import Run, by_arm, plot_losses, table

MARGIN = DepthSummary.margin
"""Nats below the unigram model's loss from which a run counts as one that trains."""
KINDS = {"encoder": "encoder", "decoder": "decoder", "cross": "cross-attention"}
"""Of attention, as they are called in measures and on the page."""


def write_report(runs: Sequence[Run], facts: Mapping[str, float], arms: Iterable[str], folder: Path) -> str:
    """Write translation.md, translation.json and the plots; returns the tables.

    `facts` are the losses of a unigram and of a uniform model, and by kind the entropy of uniform attention.
    """
    unigram = facts["unigram_loss"]
    summaries = [
        DepthSummary(arm, own, unigram, facts["uniform_loss"]) for arm, own in by_arm(runs, arms).items()
    ]
    tables = f"{outcomes_table(summaries)}\n\n{cells_table(summaries)}"
    (folder / "translation.md").write_text(tables + "\n")
    (folder / "translation.json").write_text(
        json.dumps(as_data(summaries, facts), separators=(",", ":")) + "\n"
    )
    plot_losses({"": summaries}, "unigram model", "token", folder / "translation-loss.png")
    panels = [Panel("loss (mean of 10 steps)", ("loss",), (unigram,))]
    for kind, name in KINDS.items():
        measures = (f"entropy_mean/{kind}", f"entropy_min/{kind}")
        panels.append(Panel(f"entropy, {name}", measures, (facts[kind],)))
    panels.append(Panel("TEV mean", ("tev_mean",)))
    plot_courses(summaries, panels, folder / "translation-course.png")
    return tables


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
