"""Draws a rehearsal: losses of the run that a fault was planted in and of its twin, and the watchdog's sums.

    surefoot rehearse configs/gpt/rehearsal.toml --num-accelerators 2 --fault poisoned_samples@400+40
    python benchmarks/rehearsal_plot.py FOLDER/FAULT FOLDER/clean docs/rehearsal.png

The axis is the attempt, as in TensorBoard: a step that is taken again comes further right.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from launch.inspect import read_run
from pretrain.ledger.record import Kind

mpl.use("Agg")
SIGNALS = ("loss", "gradient_norm", "tev_mean", "attention_entropy_min")
MARKS = {Kind.SUSPECT: ("suspicion", "tab:orange"), Kind.ALARM: ("alarm", "tab:red")}


def losses(folder: Path) -> tuple[list[int], list[float]]:
    """By attempt."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    found = {row["attempt"]: row["loss"] for row in rows if row.get("loss") is not None}
    return list(found), list(found.values())


def sums(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Signal -> sum of its drift over the threshold, by attempt."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]
    curves = {}
    for name in SIGNALS:
        if f"wd/sum/{name}" not in tags:
            continue
        thresholds = {e.step: e.value for e in events.Scalars(f"wd/threshold/{name}")}
        points = [(e.step, abs(e.value) / thresholds[e.step]) for e in events.Scalars(f"wd/sum/{name}")]
        curves[name] = ([x for x, _ in points], [y for _, y in points])
    return curves


def mark(axes: Any, folder: Path, start: int, end: int) -> None:
    """What the ledger tells of these attempts, as vertical lines; steps that were undone are shaded."""
    for record in read_run(folder).records:
        if record.kind in MARKS and start <= record.attempt <= end:
            word, colour = MARKS[record.kind]
            above = 2 + (record.kind is Kind.ALARM)
            axes.axvline(record.attempt, color=colour, linewidth=0.8, label=word, zorder=above)
        if record.kind is Kind.ROLLBACK_INTENT:
            undone = record.step - record.fields["target_step"]
            axes.axvspan(record.attempt - undone, record.attempt, color="0.88", label="undone")


def draw(run: Path, twin: Path, start: int, end: int) -> Any:
    """Two panels over the attempts from `start` to `end`."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5.5), sharex=True, layout="constrained")
    mark(above, run, start, end)
    for folder, label, colour in ((twin, "undisturbed twin", "tab:blue"), (run, "with the fault", "black")):
        above.plot(*losses(folder), label=label, color=colour, linewidth=0.9)
    mark(below, run, start, end)
    for name, points in sums(run).items():
        below.plot(*points, label=name, linewidth=0.9)
    below.axhline(1, color="black", linestyle=":", linewidth=0.8)
    above.set(ylabel="training loss, nats", xlim=(start, end))
    inside = [y for x, y in zip(*losses(run), strict=True) if start <= x <= end]
    above.set_ylim(min(inside) - 0.1, max(inside) + 0.1)
    below.set(ylabel="drift's sum over its threshold", xlabel="attempt")
    for axes in (above, below):
        handles = dict(reversed(list(zip(*reversed(axes.get_legend_handles_labels()), strict=True))))
        axes.legend(handles.values(), handles.keys(), fontsize="small", loc="upper right")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("twin", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--attempts", type=int, nargs=2, default=(340, 540), metavar=("FIRST", "LAST"))
    options = parser.parse_args()
    draw(options.run, options.twin, *options.attempts).savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
