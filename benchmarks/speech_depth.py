"""Which deep encoders of speech train without warmup: 24 blocks, four optimizers, each with and without sigmaReparam.

    python benchmarks/speech_depth.py --data data/single-digits             all arms, both seeds
    python benchmarks/speech_depth.py --data data/single-digits --out FOLDER    elsewhere; cells there do not run again

Arms are configs/speech/deep.toml, whose header says how the data is prepared, with another optimizer and with
sigmaReparam: 24 blocks of post-LN, hidden size 64, 4 heads, CTC over characters, no warmup, constant learning rate, no
dropout, no weight decay, no augmentation, fp32, gradients clipped at norm 1. Arms with sigmaReparam begin as the same
function as those without (gamma is the spectral norm at first). The data are recordings of single digits. Within a
seed all arms see the same batches in the same order. grid.py trains the cells.

LARS moves matrices by its trust coefficient times the learning rate, and biases and gains, which are no matrices, as
SGD does: with the default coefficient, 0.001, rates that move matrices throw these off. Here it is 0.02.

Attention entropies and spectral norms are looked at every so often on the same batch of validation utterances, with
all rows, as a step whose update is withheld, which leaves no trace.

What trains was laid down before the first run of the grid, by what outputs can reach that do not listen. Those of
probabilities that are the same everywhere have the loss of the blank plateau on which models of CTC begin; those that
know how far each output is from both ends of the utterance, and nothing else, have a lower one (`Deaf` is fitted to
the very batches of the first seed). The final loss is the mean training loss of the last tenth of the steps. A run has
DIVERGED when a loss or gradient norm was not finite, or the final loss lies above that of uniform outputs. It STALLS
when it did not diverge, and the final loss is less than `SpeechSummary.margin` nats a unit below that of constant
outputs. It TRAINS when the final loss is below that of outputs that know their place: they must have listened. Between
these it BEGINS: it has left the plateau, but might not have listened yet. Beside it stands the unit error rate of
validation, of what is likeliest at every output.

Writes runs.jsonl (every run, every step), and from it speech.json, a Markdown table and plots.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import cast

import torch
from grid import (
    SHRUNK,
    Cell,
    Course,
    Trainer,
    cell_settings,
    command_line,
    looked_step,
    run_cells,
    validation_set,
)
from grid_report import read_runs
from speech_report import OPTIMIZERS, SIGMA, write_report
from torch import Tensor, nn

from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.source import SpeechSource
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.tasks.speech.config import SpeechModelConfig, output_frames
from pretrain.tasks.speech.objective import CTC, UnitErrorRate

CONFIG = Path(__file__).parents[1] / "configs/speech/deep.toml"
SETTINGS = (
    *SHRUNK,
    "probes.every_steps=1000000",  # looks are asked for
    "probes.attention_entropy_rows=all",
    "probes.spectral_norms=true",
    "probes.layer_gradient_norms=false",
    "probes.replicas=false",
)
OF_OPTIMIZERS: Mapping[str, tuple[str, ...]] = {
    "AdamW": ("optimizer.kind=adamw", "optimizer.beta2=0.98"),
    "SGD": ("optimizer.kind=sgd", "optimizer.momentum=0.9"),
    "LARS": ("optimizer.kind=lars", "optimizer.momentum=0.9", "optimizer.trust_coefficient=0.02"),
    "Adagrad": ("optimizer.kind=adagrad",),
}
"""Overrides."""
LEARNING_RATES: Mapping[str, tuple[float, ...]] = {
    "AdamW": (1e-3, 3e-3, 3e-4, 1e-2),
    "SGD": (0.1, 0.2, 0.03, 0.5),
    "LARS": (0.1, 0.2, 0.05, 0.4),
    "Adagrad": (0.01, 0.03, 0.003, 0.1),
}
"""In this order, so that a grid that was cut short has its middle."""
KEPT = ("attention_entropy_mean", "attention_entropy_min", "sigma_max")
FITTING_RATE = 0.1


def make_config(options: argparse.Namespace, cell: Cell) -> RunConfig:
    reparametrization = ("model.reparametrization=sigma",) if cell.arm.endswith(SIGMA) else ()
    overrides = OF_OPTIMIZERS[cell.arm.removesuffix(SIGMA)]
    return load_config(CONFIG, [*SETTINGS, *overrides, *reparametrization, *cell_settings(options, cell)])


def kept(measures: Mapping[str, float]) -> dict[str, float]:
    return {name: measures[name] for name in KEPT if name in measures}  # none of what is not finite


def unit_error_rate(engine: TrainEngine, course: Course) -> dict[str, float]:
    """Of validation, the likeliest units being taken."""
    edits, units = map(
        sum, zip(*(engine.evaluate(batches).sums for batches in course.validation), strict=True)
    )
    return {"unit_error_rate": edits / units}


class Deaf(nn.Module):
    """Outputs that do not listen: the same everywhere, or else by their places from both ends of the utterance."""

    def __init__(self, config: RunConfig, *, knows_places: bool) -> None:
        super().__init__()
        model = cast(SpeechModelConfig, config.model)
        self._stride, self._knows_places = model.subsampling.stride, knows_places
        outputs = output_frames(config.data.max_frames, self._stride)
        self.everywhere = nn.Parameter(torch.zeros(model.vocabulary_size))
        self.from_start = nn.Parameter(torch.zeros(outputs, model.vocabulary_size))
        self.from_end = nn.Parameter(torch.zeros(outputs, model.vocabulary_size))

    def forward(self, frames_B: Tensor) -> Tensor:
        """It returns logits (B, T, V) for utterances of so many frames."""
        outputs_B1 = output_frames(frames_B, self._stride)[:, None]
        places_T = torch.arange(int(outputs_B1.max()))
        if not self._knows_places:
            return self.everywhere.expand(len(frames_B), len(places_T), -1)
        left_BT = (outputs_B1 - 1 - places_T).clamp(min=0)
        return self.everywhere + self.from_start[places_T] + self.from_end[left_BT]

    def loss(self, batch: SpeechBatch) -> Tensor:
        """It returns the sum over units."""
        return CTC(self._stride)(self(batch.frames_B), batch.labels)

    def fit(self, batches: Sequence[SpeechBatch]) -> None:
        """It goes through the batches three times."""
        optimizer = torch.optim.Adam(self.parameters(), FITTING_RATE, foreach=True)
        steps = 3 * len(batches)
        for number, batch in enumerate(itertools.islice(itertools.cycle(batches), steps)):
            optimizer.param_groups[0]["lr"] = FITTING_RATE * (1 - number / steps)
            optimizer.zero_grad()
            (self.loss(batch) / batch.target_weight).backward()
            optimizer.step()

    @torch.no_grad()
    def mean_loss(self, batches: Sequence[SpeechBatch]) -> float:
        return fmean(float(self.loss(batch)) / batch.target_weight for batch in batches)

    @torch.no_grad()
    def error_rate(self, batches: Sequence[SpeechBatch]) -> float:
        metric = UnitErrorRate(self._stride)
        edits, units = sum(metric.sums(self(batch.frames_B), batch.labels) for batch in batches)
        return float(edits / units)


def facts_of(config: RunConfig, course: Course, looked_at: SpeechBatch) -> dict[str, float]:
    """Losses and error rates of outputs that do not listen, and the entropy of attention to all outputs alike."""
    train, validation = (
        [cast(SpeechBatch, batches[0]) for batches in split] for split in (course.batches, course.validation)
    )
    found = {"uniform_loss": Deaf(config, knows_places=False).mean_loss(train)}
    for name, knows_places in (("constant", False), ("places", True)):
        deaf = Deaf(config, knows_places=knows_places)
        deaf.fit(train)
        found[f"{name}_loss"] = deaf.mean_loss(train)
        found[f"{name}_validation_loss"] = deaf.mean_loss(validation)
        found[f"{name}_unit_error_rate"] = deaf.error_rate(validation)
    outputs = output_frames(looked_at.frames_B, config.model.subsampling.stride).tolist()
    found["uniform_entropy"] = fmean(math.log(keys) for keys in outputs for _ in range(keys))
    return found


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """A rate of each optimizer at a time, both seeds, so that a grid that was cut short has whole columns."""
    for place in range(max(map(len, LEARNING_RATES.values()))):
        for seed, arm in itertools.product(options.seeds, options.arms):
            rates = options.learning_rates or LEARNING_RATES[arm.removesuffix(SIGMA)]
            if place < len(rates):
                yield Cell(arm, rates[place], seed)


def main() -> None:
    arms = [arm for optimizer in OPTIMIZERS for arm in (optimizer, optimizer + SIGMA)]
    parser = command_line(__doc__, arms, (), "speech-depth")
    parser.set_defaults(seeds=[0, 1], micro_batch_size=32, validation_samples=150)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    journal, source = options.out / "runs.jsonl", SpeechSource()
    cells = list(cells_of(options))
    first = make_config(options, cells[0])
    validation = [batches[0] for batches in validation_set(source, first)]
    looked_at = validation[len(validation) // 2]
    take_step = partial(looked_step, looked_at, kept)
    trainer = Trainer(source, partial(make_config, options), take_step, unit_error_rate)
    run_cells(cells, trainer, journal, options.minutes)
    facts = facts_of(first, trainer.course(first), looked_at)
    print(write_report(read_runs(journal), facts, options.out))


if __name__ == "__main__":
    main()
