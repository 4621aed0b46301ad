"""Shipped configurations: the runs that the commands in their headers start, and those runs with small dimensions."""

import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w
from support.speech_model import MAX_SECONDS, MEL_BINS, UNITS, speech_batches
from support.training import VOCABULARY, make_batches
from support.translation import SOURCE, SOURCE_LENGTH, TARGET_LENGTH, translation_batches

from parallel.mesh import ParallelMesh
from pretrain.config.loader import dump_config, load_config
from pretrain.config.run import RunConfig

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class ShippedRun:
    """It is what one command in the header of a configuration starts."""

    file: str
    """Path below the root of the project."""
    header: str
    """The comment that the file opens with, without its signs and with broken lines joined."""
    overrides: tuple[str, ...]
    world_size: int

    def __str__(self) -> str:
        return " ".join([self.file.removeprefix("configs/").removesuffix(".toml"), *self.overrides])

    def load(self) -> RunConfig:
        """It loads the configuration as the command does."""
        return load_config(ROOT / self.file, self.overrides)


def shipped_runs() -> list[ShippedRun]:
    """It returns the runs of all files, at least one of each."""
    files = sorted((ROOT / "configs").rglob("*.toml"))
    return [run for path in files for run in _runs(path)]


def _runs(path: Path) -> list[ShippedRun]:
    text = path.read_text().partition("[run]")[0]
    header = re.sub(r"^# ?", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    commands = re.findall(r"surefoot (?:train|rehearse) (.*)", header)
    assert commands, f"{path} has no command in its header"
    file = path.relative_to(ROOT).as_posix()
    return [_run(file, header, shlex.split(command)) for command in commands]


def _run(file: str, header: str, words: Sequence[str]) -> ShippedRun:
    assert words[0] == file, f"the command in {file} starts {words[0]}"
    options = list(pairwise(words))
    overrides = tuple(value for name, value in options if name == "--set")
    ranks = [value for name, value in options if name == "--num-accelerators"]
    return ShippedRun(file, header, overrides, int((ranks or re.findall(r"= (\d+) ranks", header))[0]))


STILL = {"global_shift": 0.0, "local_shift": 0.0}
"""Positions that nothing moves: chance differs between data ranks."""
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "gpt": {
        "model": {"num_layers": 4, "vocabulary_size": VOCABULARY},
        "data": {"sequence_length": 32},
    },
    "translation": {
        "model": {
            "encoder_layers": 2,
            "decoder_layers": 2,
            "source_vocabulary_size": SOURCE,
            "target_vocabulary_size": SOURCE,
        },
        "data": {"max_source_length": SOURCE_LENGTH, "max_target_length": TARGET_LENGTH},
    },
    "speech": {
        "model": {"num_layers": 4, "vocabulary_size": UNITS, "layer_drop": 0.0, "cape": STILL},
        "data": {"max_seconds": MAX_SECONDS, "mel_bins": MEL_BINS, "sample_rate": 8000, "augmentation": {}},
    },
}
"""By task, sizes that train within seconds."""


def shrunk(run: ShippedRun, folder: Path, *, layers: bool = True, **parallel: int) -> RunConfig:
    """It returns the run with small dimensions in another layout: everything that is not a size stays, but what is
    left to chance, such as dropout, whose masks differ between data ranks; with `layers` there are fewer of those."""
    document: dict[str, Any] = tomllib.loads(dump_config(run.load()))
    model, small = document["model"], SMALL[document["model"]["kind"]]
    model.update(
        {key: value for key, value in small["model"].items() if layers or not key.endswith("layers")}
    )
    model.update(hidden_size=32, dropout=0.0)
    model.pop("ffn_hidden_size", None)
    model["attention"].update(num_heads=4, dropout=0.0)
    document["run"].update(steps=100)
    document["schedule"].update(warmup_steps=10)
    if document["schedule"].get("milestones"):
        document["schedule"].update(milestones=[50, 75])
    document["parallel"].update(parallel, timeout_seconds=60, control_timeout_seconds=60)
    document["data"].update(small["data"], micro_batch_size=2, global_batch_size=8)
    path = folder / "shrunk.toml"
    path.write_text(tomli_w.dumps(document))
    return load_config(path)


def shrunk_batches(config: RunConfig, mesh: ParallelMesh, step: int) -> Sequence[Any]:
    """It returns this rank's micro-batches of a step."""
    makers = {"gpt": make_batches, "translation": translation_batches, "speech": speech_batches}
    make: Callable[..., Sequence[Any]] = makers[config.model.kind]
    return make(config, mesh, step)
