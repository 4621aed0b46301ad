"""Which deep encoder-decoders train without warmup: 24 + 24 blocks at equal data, seeds and parameters.

    python benchmarks/translation_depth.py                    all arms, both seeds
    python benchmarks/translation_depth.py --out runs/x       the same elsewhere; cells that are there are not run again

Arms are configurations of configs/translation/deep, made narrower (`SETTINGS`): 24 blocks on either side, hidden size
64, no warmup, constant learning rate, no dropout, no label smoothing, fp32, AdamW as configured, gradients clipped at
norm 1; those with sigmaReparam begin as the same function as those without (gamma is the spectral norm at first). The
data are the captions of Multi30k, English to German, prepared once with a small vocabulary for both languages. Within
a seed all arms see the same batches in the same order. grid.py trains the cells.

Attention entropy is looked at every so often on the same batch of validation pairs, with all rows, as a step whose
update is withheld, which leaves no trace: over batches of sentences that differ in length it would jump.

What trains was laid down before the first run of the grid. The final loss is the mean training loss of the last tenth
of the steps. A run has DIVERGED when a loss or gradient norm was not finite, or the final loss lies above that of a
uniform model, ln(vocabulary). It STALLS when it did not diverge, and the final loss is less than `MARGIN` nats below
the unigram model's (of the validation split): it has learned frequencies of words and nothing else. Else it TRAINS.
How far a model that trains listens to the source, and does not only continue the target, `source_gain` says: the
validation loss with sources that are those of other pairs, less the validation loss.

Writes runs.jsonl (every run, every step), and from it translation.json, a Markdown table and plots.
"""

import argparse
import itertools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from grid import (
    SHRUNK,
    Cell,
    Course,
    Trainer,
    cell_settings,
    command_line,
    evaluate,
    looked_step,
    run_cells,
    unigram_loss,
    validation_set,
)
from grid_report import read_runs
from translation_report import KINDS, MARGIN, write_report

from data_pipeline.translation.batch import PADDING, PairBatch
from data_pipeline.translation.corpus import RawFiles
from data_pipeline.translation.filters import Limits
from data_pipeline.translation.prepare import TranslationSettings, prepare_translation
from data_pipeline.translation.source import TranslationSource
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine

CONFIGS = Path(__file__).parents[1] / "configs/translation/deep"
SIGMA = ("model.reparametrization=sigma",)
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "post-LN": ("post-ln", ()),
    "post-LN + sigmaReparam": ("post-ln", SIGMA),
    "DeepNorm": ("deepnorm", ()),
    "DeepNorm + sigmaReparam": ("deepnorm", SIGMA),
}
"""Configuration and overrides."""
LEARNING_RATES = (3e-3, 5e-3, 1e-3, 1e-2)
"""In this order, so that a grid that was cut short has its middle."""
VOCABULARY, LONGEST = 1024, 40
SETTINGS = (
    *SHRUNK,
    f"model.source_vocabulary_size={VOCABULARY}",
    f"model.target_vocabulary_size={VOCABULARY}",
    "model.dropout=0",
    "model.label_smoothing=0",
    f"data.max_source_length={LONGEST}",
    f"data.max_target_length={LONGEST}",
    "probes.every_steps=1000000",  # looks are asked for
    "probes.attention_entropy_rows=all",
    "probes.layer_gradient_norms=false",
    "probes.replicas=false",
)
TEV = ("tev_mean", "tev_std")


def make_config(options: argparse.Namespace, cell: Cell) -> RunConfig:
    name, overrides = ARMS[cell.arm]
    return load_config(CONFIGS / f"{name}.toml", [*SETTINGS, *overrides, *cell_settings(options, cell)])


def kept(measures: Mapping[str, float]) -> dict[str, float]:
    return {**entropies(measures), **{name: measures[name] for name in TEV}}


def entropies(measures: Mapping[str, float]) -> dict[str, float]:
    """Of each kind of attention the mean over its layers and heads, and the least of a head; none where not finite."""
    found: dict[str, float] = {}
    for kind in KINDS:
        for fold, name in ((fmean, "mean"), (min, "min")):
            prefix = f"attention_entropy_{name}/"
            values = [
                value
                for key, value in measures.items()
                if key.startswith(prefix) and kind_of(key.removeprefix(prefix)) == kind
            ]
            if values:
                found[f"entropy_{name}/{kind}"] = fold(values)
    return found


def kind_of(attention: str) -> str:
    """`encoder_03` and `decoder_03` are attention of a side to itself, `decoder_03/cross` of one to the other."""
    block, _, other = attention.partition("/")
    return other or block.partition("_")[0]


def uniform_entropies(batch: PairBatch) -> dict[str, float]:
    """The entropy of each kind of attention if every row attended to all keys that it sees alike.

    Rows that see one key do not count, as in the probe.
    """
    sources, targets = ((ids != PADDING).sum(1).tolist() for ids in batch.inputs)
    rows = {
        "encoder": [n for n in sources for _ in range(n)],
        "decoder": [n for m in targets for n in range(2, m + 1)],
        "cross": [n for n, m in zip(sources, targets, strict=True) for _ in range(m)],
    }
    return {kind: fmean(math.log(keys) for keys in seen) for kind, seen in rows.items()}


def source_gain(engine: TrainEngine, course: Course) -> dict[str, float]:
    """What the right sources are worth, in nats a token. A batch holds sources of like lengths."""
    strange = [
        [replace(b, source_BS=b.source_BS.roll(1, 0)) for b in batches] for batches in course.validation
    ]
    return {"source_gain": evaluate(engine, strange) - evaluate(engine, course.validation)}


def prepare_data(corpus: Path, folder: Path) -> None:
    """Pairs of at most `LONGEST` tokens a side; nothing to do where they lie there already."""
    train, validation = (
        RawFiles((str(corpus / f"{split}.en.gz"),), (str(corpus / f"{split}.de.gz"),))
        for split in ("train", "val")
    )
    prepare_translation(
        TranslationSettings(
            train=train,
            validation=validation,
            out=folder,
            fields=("source", "target"),
            vocabulary_size=VOCABULARY,
            tokenizers=(),
            separate=False,
            validation_fraction=0.0,
            limits=Limits(max_length=LONGEST, max_ratio=None, drop_copies=False, drop_untranslated=False),
            workers=1,
            shard_samples=65536,
            seed=0,
            overwrite=False,
        )
    )


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """Learning rate by learning rate with both seeds, so that a grid that was cut short has whole columns."""
    for rate, seed, arm in itertools.product(options.learning_rates, options.seeds, options.arms):
        yield Cell(arm, rate, seed)


def main() -> None:
    parser = command_line(__doc__, ARMS, LEARNING_RATES, "translation-depth")
    parser.set_defaults(seeds=[0, 1], micro_batch_size=16, validation_samples=256)
    corpus = Path(os.environ.get("SUREFOOT_DATA", "data")) / "translation/multi30k"
    parser.add_argument(
        "--corpus", type=Path, default=corpus, help="folder with train and val, .en.gz and .de.gz"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    prepare_data(options.corpus, options.data)
    journal = options.out / "runs.jsonl"
    cells, source = list(cells_of(options)), TranslationSource()
    first = make_config(options, cells[0])
    validation = [batches[0] for batches in validation_set(source, first)]
    looked_at = validation[len(validation) // 2]
    trainer = Trainer(
        source, partial(make_config, options), partial(looked_step, looked_at, kept), source_gain
    )
    run_cells(cells, trainer, journal, options.minutes)
    unigram = unigram_loss(source, first)
    facts = {"unigram_loss": unigram, "uniform_loss": math.log(VOCABULARY), **uniform_entropies(looked_at)}
    print(write_report(read_runs(journal), facts, list(ARMS), options.out))
    print(f"stalls: less than {MARGIN} nats below the unigram model's {unigram:.2f}")


if __name__ == "__main__":
    main()
