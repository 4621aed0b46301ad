"""Cells of a comparison, arm x learning rate x seed, each trained on the same batches as the others of its seed.

benchmarks/stability.py, translation_depth.py and speech_depth.py say what the arms are; this module is imported by all
and does nothing by itself. Every update is applied, whatever it is; a run ends early only when its loss or gradient
norm is not finite. What comes of a cell is appended to a journal, so that a grid that was broken off goes on.
"""

import argparse
import gc
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from grid_report import Measures, Run, read_runs

from data_pipeline.batches import Batch
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.source import Source
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.engine.engine import TrainEngine
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import Action, StepReport, Verdict

SHRUNK = (
    "model.hidden_size=64",
    "schedule.kind=constant",
    "schedule.warmup_steps=0",
    "probes.spectral_norms=false",
    "probes.activation_rms=false",
    "probes.update_rms=false",
    "probes.gradient_variance=false",
)
"""Settings of all cells: narrow enough for a CPU core, no warmup, no probes that nobody looks at."""


class Cell(NamedTuple):
    """What is trained."""

    arm: str
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Course:
    """What every arm trains on for one seed."""

    batches: Sequence[list[Batch]]
    validation: Sequence[list[Batch]]


TakeStep = Callable[[TrainEngine, int, list[Batch], float], tuple[StepReport, Mapping[str, float]]]
"""Takes step number so and so at a learning rate, and returns its report and the measures that are to be kept."""
Keep = Callable[[Mapping[str, float]], Mapping[str, float]]
"""Returns what is to be kept of a report's measures."""
LOOK_EVERY = 20
"""Steps from a look at a fixed batch to the next."""
Examine = Callable[[TrainEngine, Course], Mapping[str, float]]
"""Measures of the trained model, kept as those of the last step."""


@dataclass
class Record:
    """What is written down while a run goes on."""

    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    measures: Measures = field(default_factory=lambda: defaultdict(list))

    def add(self, report: StepReport, kept: Mapping[str, float]) -> None:
        self.losses.append(report.loss)
        self.gradient_norms.append(report.gradient_norm)
        self.keep(kept)

    def keep(self, measures: Mapping[str, float]) -> None:
        """As those of the last step."""
        for name, value in measures.items():
            self.measures[name].append((len(self.losses), value))


def proceed(report: StepReport) -> Verdict:
    return Verdict(Action.PROCEED)


def withhold(report: StepReport) -> Verdict:
    """A step whose update is withheld leaves no trace in the run."""
    return Verdict(Action.VETO)


def looked_step(
    looked_at: Batch, keep: Keep, engine: TrainEngine, number: int, batches: list[Batch], learning_rate: float
) -> tuple[StepReport, Mapping[str, float]]:
    """The step, at first and then every so often after a look: all probes see a batch that is always the same."""
    kept: Mapping[str, float] = {}
    if number == 1 or number % LOOK_EVERY == 0:
        look, _ = engine.step([looked_at], withhold, step=number, learning_rate=learning_rate, full=True)
        kept = keep(look.measures)
    report, _ = engine.step(batches, proceed, step=number, learning_rate=learning_rate)
    return report, kept


def make_course(source: Source, config: RunConfig) -> Course:
    stream = BatchStream(source, config.data, seed=config.run.seed, data_rank=0, data_size=1)
    validation = validation_set(source, config)
    course = Course(list(itertools.islice(stream, config.run.steps)), list(validation))
    stream.close()
    validation.close()
    return course


def validation_set(source: Source, config: RunConfig) -> ValidationSet:
    return ValidationSet(source, config.data, samples=config.evaluation.samples, data_rank=0, data_size=1)


def unigram_loss(source: Source, config: RunConfig) -> float:
    """Of the validation split, under the train split's token frequencies."""
    baseline = validation_set(source, config).baseline
    assert baseline is not None, "one source has a unigram loss"
    return baseline.loss


def evaluate(engine: TrainEngine, validation: Iterable[list[Batch]]) -> float:
    """Mean loss over the samples."""
    parts = [engine.evaluate(batches) for batches in validation]
    return sum(part.loss * part.targets for part in parts) / sum(part.targets for part in parts)


class Trainer:
    """Trains cells of one comparison in this process."""

    def __init__(
        self, source: Source, configure: Callable[[Cell], RunConfig], take_step: TakeStep, examine: Examine
    ) -> None:
        self._source = source
        self._configure = configure
        self._take_step = take_step
        self._examine = examine
        self._mesh: ParallelMesh | None = None
        self._courses: dict[int, Course] = {}

    def train(self, cell: Cell) -> Run:
        """From the initial weights until the batches end or something is not finite."""
        config = self._configure(cell)
        course, layout = self.course(config), plan(config, 1)
        self._mesh = self._mesh or ParallelMesh.create(config.parallel)
        engine = assemble_engine(config, layout, self._mesh, detect_kernels())
        started = time.perf_counter()
        record = Record()
        for number, batches in enumerate(course.batches, start=1):
            report, kept = self._take_step(engine, number, batches, cell.learning_rate)
            record.add(report, kept)
            if not report.finite:
                break
        seconds = time.perf_counter() - started
        if report.finite:
            record.keep(self._examine(engine, course))
        return Run(
            *cell,
            parameters=layout.parameters.total,
            steps=config.run.steps,
            finite=report.finite,
            losses=record.losses,
            gradient_norms=record.gradient_norms,
            measures=dict(record.measures),
            validation_loss=evaluate(engine, course.validation) if report.finite else math.nan,
            seconds=seconds,
        )

    def course(self, config: RunConfig) -> Course:
        """That of the seed."""
        seed = config.run.seed
        if seed not in self._courses:
            self._courses[seed] = make_course(self._source, config)
        return self._courses[seed]


def run_cells(cells: Iterable[Cell], trainer: Trainer, journal: Path, minutes: float) -> None:
    """Every cell that is not in the journal yet, while the time lasts."""
    done = {Cell(run.arm, run.learning_rate, run.seed) for run in read_runs(journal)}
    deadline = time.monotonic() + 60 * minutes
    for cell in cells:
        if cell in done:
            continue
        if time.monotonic() > deadline:
            print(f"{minutes} minutes are over; the same command goes on from here")
            return
        run = trainer.train(cell)
        gc.collect()
        with journal.open("a") as file:
            file.write(run.to_json() + "\n")
        print(
            f"{run.arm:24} lr {run.learning_rate:<6g} seed {run.seed}: final loss {run.final_loss:.3f}, "
            f"validation {run.validation_loss:.3f}, {run.seconds:.0f} s",
            flush=True,
        )


def command_line(
    description: str | None, arms: Iterable[str], learning_rates: Sequence[float], name: str
) -> argparse.ArgumentParser:
    """Options of every comparison, with the defaults of the one called `name`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arms = list(arms)
    parser.add_argument("--arms", nargs="+", choices=arms, default=arms, metavar="ARM")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=learning_rates)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--validation-samples", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no run after so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path("data") / name, help="prepared data")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results") / name, help="folder")
    return parser


def cell_settings(options: argparse.Namespace, cell: Cell) -> list[str]:
    """Overrides that follow from the command line."""
    size = options.micro_batch_size
    return [
        f"run.steps={options.steps}",
        f"run.seed={cell.seed}",
        f"data.sources=[{{path={json.dumps(str(options.data))}}}]",
        f"data.micro_batch_size={size}",
        f"data.global_batch_size={size}",
        f"evaluation.samples={options.validation_samples}",
    ]
