"""Which learning rates a deep model survives: arms side by side at equal data, seeds and parameters.

    python benchmarks/stability.py                            all arms, seed 0
    python benchmarks/stability.py --seeds 2 --out runs/x     another seed; cells that are there are not run again

Arms are configurations of configs/gpt/deep, made narrower (`SHRUNK`) so that a CPU core trains one in
about a minute: 24 layers, no warmup, constant learning rate, fp32, AdamW as configured, gradients clipped at norm 1.
Text is Python's standard library, prepared once. Within a seed all arms see the same batches in the same order, and
matrices that they share begin with the same values. Every update is applied, whatever it is; a run ends early only
when its loss or gradient norm is not finite.

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
import gc
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from stability_report import MARGIN, Run, read_runs, write_report

from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.text.batch import TokenBatch
from data_pipeline.text.prepare import TextSettings, prepare_text
from data_pipeline.text.source import TextSource
from parallel.mesh import ParallelMesh
from parallel.statistics import sample_variance
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.engine.engine import TrainEngine
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import Action, StepReport, Verdict

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
SHRUNK = (
    "model.hidden_size=64",
    f"model.vocabulary_size={VOCABULARY}",
    f"data.sequence_length={SEQUENCE}",
    "schedule.kind=constant",
    "schedule.warmup_steps=0",
    "probes.every_steps=20",
    "probes.spectral_norms=false",
    "probes.activation_rms=false",
    "probes.update_rms=false",
    "probes.gradient_variance=false",
)
KEPT = ("tev_mean", "tev_std", "attention_entropy_mean", "attention_entropy_min")
GRADIENTS = ("gradient_variance", "gradient_variance/embedding")
"""Trace of the covariance of a part's gradient, of all parameters and of the embedding table alone."""
PARTS = 4


@dataclass(frozen=True)
class Course:
    """What every arm trains on for one seed."""

    batches: Sequence[list[TokenBatch]]
    validation: Sequence[list[TokenBatch]]


@dataclass
class Record:
    """What is written down while a run goes on."""

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    measures: dict[str, list[tuple[int, float]]] = field(
        default_factory=lambda: {name: [] for name in (*KEPT, *GRADIENTS)}
    )

    def add(self, report: StepReport) -> None:
        self.losses.append(report.loss)
        self.gradient_norms.append(report.gradient_norm)
        for name in KEPT:
            if name in report.measures:
                self.measures[name].append((report.step, report.measures[name]))

    def add_variances(self, report: StepReport, parts: Sequence[StepReport]) -> None:
        """From a step and the same step in parts of equal weight."""
        for name, value in zip(GRADIENTS, gradient_variances(report, parts), strict=True):
            self.measures[name].append((report.step, value))


def make_config(options: argparse.Namespace, arm: str, seed: int) -> RunConfig:
    name, overrides = ARMS[arm]
    size = options.micro_batch_size
    return load_config(
        CONFIGS / f"{name}.toml",
        [
            *SHRUNK,
            *overrides,
            f"run.steps={options.steps}",
            f"run.seed={seed}",
            f"data.sources=[{{path={json.dumps(str(options.data))}}}]",
            f"data.micro_batch_size={size}",
            f"data.global_batch_size={size}",
            f"evaluation.samples={options.validation_samples}",
        ],
    )


def make_course(config: RunConfig) -> Course:
    stream = BatchStream(TextSource(), config.data, seed=config.run.seed, data_rank=0, data_size=1)
    validation = ValidationSet(
        TextSource(), config.data, samples=config.evaluation.samples, data_rank=0, data_size=1
    )
    course = Course(list(itertools.islice(stream, config.run.steps)), list(validation))
    stream.close()
    validation.close()
    return course


def proceed(report: StepReport) -> Verdict:
    return Verdict(Action.PROCEED)


def withhold(report: StepReport) -> Verdict:
    return Verdict(Action.VETO)


def train(engine: TrainEngine, config: RunConfig, course: Course, learning_rate: float) -> Record:
    """Until the batches end or something is not finite."""
    record = Record()
    for number, batches in enumerate(course.batches, start=1):
        parts: list[StepReport] = []
        if number % config.probes.every_steps == 0:
            parts = [
                engine.step([part], withhold, step=number, learning_rate=learning_rate)[0]
                for part in in_parts(batches[0])
            ]
        report, _ = engine.step(batches, proceed, step=number, learning_rate=learning_rate)
        record.add(report)
        if parts:
            record.add_variances(report, parts)
        if not report.finite:
            break
    return record


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


def evaluate(engine: TrainEngine, course: Course) -> float:
    """Mean loss over the validation samples."""
    parts = [engine.evaluate(batches) for batches in course.validation]
    return sum(part.loss * part.targets for part in parts) / sum(part.targets for part in parts)


def one_run(config: RunConfig, mesh: ParallelMesh, course: Course, arm: str, learning_rate: float) -> Run:
    """Train one cell from its initial weights."""
    layout = plan(config, 1)
    engine = assemble_engine(config, layout, mesh, detect_kernels())
    started = time.perf_counter()
    record = train(engine, config, course, learning_rate)
    seconds = time.perf_counter() - started
    finite = math.isfinite(record.losses[-1]) and math.isfinite(record.gradient_norms[-1])
    return Run(
        arm=arm,
        learning_rate=learning_rate,
        seed=config.run.seed,
        parameters=layout.parameters.total,
        steps=config.run.steps,
        finite=finite,
        losses=record.losses,
        gradient_norms=record.gradient_norms,
        measures=record.measures,
        validation_loss=evaluate(engine, course) if finite else math.nan,
        seconds=seconds,
    )


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


def run_grid(options: argparse.Namespace, journal: Path) -> None:
    """Every cell that is not in the journal yet, learning rate by learning rate, while the time lasts."""
    done = {(run.arm, run.learning_rate, run.seed) for run in read_runs(journal)}
    deadline = time.monotonic() + 60 * options.minutes
    first = make_config(options, next(iter(ARMS)), options.seeds[0])
    mesh = ParallelMesh.create(first.parallel)
    for seed in options.seeds:
        course = make_course(make_config(options, options.arms[0], seed))
        for learning_rate, arm in itertools.product(options.learning_rates, options.arms):
            if (arm, learning_rate, seed) in done:
                continue
            if time.monotonic() > deadline:
                print(f"{options.minutes} minutes are over; the same command goes on from here")
                return
            run = one_run(make_config(options, arm, seed), mesh, course, arm, learning_rate)
            gc.collect()
            with journal.open("a") as file:
                file.write(run.to_json() + "\n")
            print(
                f"{arm:24} lr {learning_rate:<6g} seed {seed}: final loss {run.final_loss:.3f}, "
                f"validation {run.validation_loss:.3f}, {run.seconds:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=LEARNING_RATES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--validation-samples", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--data", type=Path, default=Path("data/stability"), help="made where it is not there"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stability"), help="folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    prepare_data(options.data)
    journal = options.out / "runs.jsonl"
    run_grid(options, journal)
    first = make_config(options, options.arms[0], options.seeds[0])
    unigram = ValidationSet(TextSource(), first.data, samples=1, data_rank=0, data_size=1).baseline
    assert unigram is not None, "one source has a unigram loss"
    print(write_report(read_runs(journal), unigram.loss, list(ARMS), options.out))
    print(f"failed: not finite, above {unigram.loss:.2f} nats, or {MARGIN} above the arm's own best")


if __name__ == "__main__":
    main()
