"""Which learning rates a deep model survives: arms side by side at equal data, seeds and parameters.

    python benchmarks/stability.py                            all arms, seed 0
    python benchmarks/stability.py --seeds 2 --out runs/x     another seed; cells that are there are not run again

Arms are configurations of configs/gpt/deep, made narrower (`SETTINGS`) so that a CPU core trains one in
about a minute: 24 layers, no warmup, constant learning rate, fp32, AdamW as configured, gradients clipped at norm 1.
Text is Python's standard library, prepared once. Within a seed all arms see the same batches in the same order, and
matrices that they share begin with the same values. grid.py trains the cells.

A step is one micro-batch, because a second one costs a CPU as much as the first. For the gradient's variance, the
batch of every 20th step is first taken in `PARTS` parts, as steps whose updates are withheld, which leave no trace.

What is called divergence was laid down before the first run. The final loss is the mean training loss of the last
tenth of the steps. A run has FAILED when a loss or gradient norm was not finite, or the final loss lies above the
unigram model's (of the validation split), or more than `MARGIN` nats above the arm's own best (the lowest mean over
seeds of any learning rate). An arm DIVERGES AT the lowest learning rate, from its best one upwards, at which a seed
has failed; failures below the best one are too slow, not unstable.

Writes runs.jsonl (every run, every step), and from it stability.json, a Markdown table and plots.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from grid import (
    SHRUNK,
    Cell,
    Trainer,
    cell_settings,
    command_line,
    proceed,
    run_cells,
    unigram_loss,
    withhold,
)
from grid_report import read_runs
from stability_report import MARGIN, write_report

from data_pipeline.batches import Batch
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.prepare import TextSettings, prepare_text
from data_pipeline.text.source import TextSource
from parallel.statistics import sample_variance
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.step import StepReport

CONFIGS = Path(__file__).parents[1] / "configs/gpt/deep"
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dense, pre-LN": ("pre-ln", ()),
    "dense, post-LN": ("post-ln", ()),
    "sigmaReparam, no LN": ("sigma", ()),
    "sigmaReparam, pre-LN": ("pre-ln", ("model.reparametrization=sigma",)),
    "MLRA": ("mlra", ()),
    "MLRA, variance-matched": ("mlra-matched", ()),
    "MLRA + sigmaReparam": ("mlra-sigma", ()),
    "dense, no LN": ("pre-ln", ("model.norm_placement=none",)),
}
"""Configuration and overrides. MLRA stands with pre-LN; the last arm is the third without sigmaReparam."""
LEARNING_RATES = (3e-3, 1e-2, 3e-2, 1e-3, 1e-1)
"""In this order, so that a grid that was cut short has its middle."""
VOCABULARY, SEQUENCE = 512, 64
LOOK_EVERY = 20
SETTINGS = (
    *SHRUNK,
    f"model.vocabulary_size={VOCABULARY}",
    f"data.sequence_length={SEQUENCE}",
    f"probes.every_steps={LOOK_EVERY}",
)
KEPT = ("tev_mean", "tev_std", "attention_entropy_mean", "attention_entropy_min")
GRADIENTS = ("gradient_variance", "gradient_variance/embedding")
"""Trace of the covariance of a part's gradient, of all parameters and of the embedding table alone."""
PARTS = 4


def make_config(options: argparse.Namespace, cell: Cell) -> RunConfig:
    name, overrides = ARMS[cell.arm]
    return load_config(CONFIGS / f"{name}.toml", [*SETTINGS, *overrides, *cell_settings(options, cell)])


def take_step(
    engine: TrainEngine, number: int, batches: list[Batch], learning_rate: float
) -> tuple[StepReport, Mapping[str, float]]:
    """The step, every so often after its parts, and what the probes saw."""
    parts: list[StepReport] = []
    if number % LOOK_EVERY == 0:
        parts = [
            engine.step([part], withhold, step=number, learning_rate=learning_rate)[0]
            for part in in_parts(batches[0])
        ]
    report, _ = engine.step(batches, proceed, step=number, learning_rate=learning_rate)
    kept = {name: report.measures[name] for name in KEPT if name in report.measures}
    if parts:
        kept |= dict(zip(GRADIENTS, gradient_variances(report, parts), strict=True))
    return report, kept


def in_parts(batch: TokenBatch) -> list[TokenBatch]:
    """`PARTS` batches of as many samples each."""
    pieces = (x.chunk(PARTS) for x in (batch.tokens_BS, batch.targets_BS, batch.weights_BS))
    return [TokenBatch(*part) for part in zip(*pieces, strict=True)]


def gradient_variances(report: StepReport, parts: Sequence[StepReport]) -> list[float]:
    """In the order of `GRADIENTS`; the step's gradient is the mean of its parts'."""
    norms_PG = torch.tensor([gradient_norms(part) for part in parts]).double()
    mean_G = torch.tensor(gradient_norms(report)).double()
    return sample_variance(norms_PG.square().mean(0), mean_G.square(), len(parts)).tolist()


def gradient_norms(report: StepReport) -> tuple[float, float]:
    return report.gradient_norm, report.measures["gradient_norm/embedding"]


def prepare_data(folder: Path) -> None:
    """The Python sources as blocks of `SEQUENCE` tokens; nothing to do where they lie there already."""
    prepare_text(
        TextSettings(
            sources=("python-stdlib",),
            out=folder,
            vocabulary_size=VOCABULARY,
            sequence_length=SEQUENCE,
            validation_fraction=0.02,
        )
    )


def main() -> None:
    options = command_line(__doc__, ARMS, LEARNING_RATES, "stability").parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    prepare_data(options.data)
    journal = options.out / "runs.jsonl"
    trainer = Trainer(TextSource(), partial(make_config, options), take_step, lambda engine, course: {})
    # Learning rate by learning rate, so that a grid that was cut short has whole columns.
    order = itertools.product(options.seeds, options.learning_rates, options.arms)
    cells = [Cell(arm, rate, seed) for seed, rate, arm in order]
    run_cells(cells, trainer, journal, options.minutes)
    unigram = unigram_loss(TextSource(), make_config(options, cells[0]))
    print(write_report(read_runs(journal), unigram, list(ARMS), options.out))
    print(f"failed: not finite, above {unigram:.2f} nats, or {MARGIN} above the arm's own best")


if __name__ == "__main__":
    main()
