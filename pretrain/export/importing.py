"""A model of Hugging Face's becomes a run at step 0: its configuration, and a sealed checkpoint of the weights."""

import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import DataError
from data_pipeline.files import replace_file
from data_pipeline.parsing import parsed_as, read_whole
from data_pipeline.paths import escaped
from data_pipeline.reading.stream import BatchStream
from data_pipeline.shown import shown
from pretrain.checkpoint.compatibility import architecture_of, tensor_records
from pretrain.checkpoint.conversion import in_words
from pretrain.checkpoint.lifecycle import create_folder, update_latest
from pretrain.checkpoint.manifest import LIBRARIES, CheckpointLayout, Manifest, seal
from pretrain.checkpoint.output import written
from pretrain.checkpoint.rank_files import (
    RankState,
    described,
    tensor_file,
    write_companion,
    write_rank_state,
)
from pretrain.checkpoint.saved_tensors import read_from
from pretrain.checkpoint.tensor_file import TensorEntry, TensorFileWriter
from pretrain.config.loader import count, dump_config, validated
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError, Problem
from pretrain.export.foreign import ForeignFolder, ForeignTensors
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.record import Kind, record
from pretrain.models.named import key_of
from pretrain.run_folder import CHECKPOINTS, CONFIG, LEDGER
from pretrain.step import TrainState
from pretrain.tasks.architecture import Table, flattened, nested
from pretrain.tasks.registry import TASKS

CHANGEABLE = (
    "model.dropout",
    "model.attention.dropout",
    "model.activation_checkpointing",
    "model.vocabulary_multiple",
)
"""Keys of [model] that are not in the weights, and may be others than those of `config.json`."""


@dataclass(frozen=True)
class Beginning:
    """It is where a run begins to read its data."""

    position: dict[str, Any]
    fingerprint: str
    companions: dict[str, bytes]
    """Files that a model of this data is used with."""


def import_huggingface(folder: Path, out: Path, settings: Table) -> RunConfig:
    """It makes the run `out` of a model in `folder`, and returns its configuration.

    `settings` are keys of a configuration, as TOML has them: [model] and the length of the sequences follow from the
    folder, run.name and run.folder from `out`.

    Raises:
        ConfigurationError: the folder's model cannot be trained on here, settings are missing or wrong, or `out` is
            there.
        DataError: the data is missing, or not what its manifest says.
        CheckpointError: tensors are missing or damaged, or the disk refuses.
    """
    foreign = ForeignFolder(folder)
    config = config_of(foreign, out, settings)
    outline = config.model.outline(config.data)
    tensors, beginning = foreign.tensors(config.model, outline), beginning_of(config)
    check_companions(folder, beginning.companions)
    origin = f"{shown(folder.absolute())}, {foreign.architecture.name} of Hugging Face"
    with written(out, sum(4 * size.size for layer in outline.layers for size in layer.parameters)) as run:
        write_checkpoint(run / CHECKPOINTS, config, tensors, beginning, origin)
        update_latest(run / CHECKPOINTS, certified=False)
        replace_file(run / CONFIG, dump_config(config))
    return config


def check_companions(folder: Path, companions: Mapping[str, bytes]) -> None:
    """It raises DataError where the model's folder has another tokenizer, say, than the data was made with, and
    CheckpointError where it cannot be read."""
    for name, content in companions.items():
        path = folder / name
        if not path.is_file():
            continue
        with read_from(path):
            own = read_whole(path)
        if own != content:
            raise DataError(f"{shown(path)} is another one than the data was made with; prepare it with this")


def beginning_of(config: RunConfig) -> Beginning:
    """It opens the data of a run. Raises DataError, and ConfigurationError where it does not fit the model."""
    source = TASKS[config.model.kind].source
    with closing(BatchStream(source, config.data, seed=config.run.seed, data_rank=0, data_size=1)) as stream:
        manifest = stream.manifest.model_dump(mode="json")
        if problems := list(config.model.data_problems(config.data, manifest)):
            raise ConfigurationError("the data does not fit the model", problems)
        return Beginning(stream.state(), stream.fingerprint, stream.companions)


def write_checkpoint(
    checkpoints: Path, config: RunConfig, tensors: ForeignTensors, beginning: Beginning, origin: str
) -> None:
    """It writes a sealed checkpoint of step 0, of one rank, which a run in any layout goes on from.

    Raises OSError, and CheckpointError where a file of the model has changed meanwhile, or cannot be read.
    """
    tag = create_folder(checkpoints, 0)
    folder, companions = (
        checkpoints / str(tag),
        {CONFIG: dump_config(config).encode(), **beginning.companions},
    )
    paths = [
        _write_tensors(folder / tensor_file(0), config, tensors),
        write_rank_state(folder, 0, RankState(beginning.position, {}, {}, {})),
        *(write_companion(folder / name, text) for name, text in companions.items()),
    ]
    manifest = Manifest(
        tag=str(tag),
        layout=CheckpointLayout(tensor=1, pipeline=1, data=1, zero_stage=0, dtype=config.precision.dtype),
        config_digest=architecture_of(config),
        data_fingerprint=beginning.fingerprint,
        optimizer=config.optimizer.kind,
        run_id=secrets.token_hex(8),
        state=TrainState(),
        files=described(paths, 0),
        tensors=tensor_records(config.model.outline(config.data)),
        versions={name: version(name) for name in LIBRARIES},
        converted_from=origin,
    )
    seal(folder, manifest)
    append_origin(manifest, checkpoints.parent / LEDGER)


def append_origin(manifest: Manifest, path: Path) -> None:
    """It begins the ledger of the run with where the checkpoint comes from. Raises OSError."""
    layout = in_words(manifest.layout)
    with closing(LedgerFile(path)) as ledger:
        facts = {"host": socket.gethostname(), "layout": layout}
        ledger.append(record(Kind.RUN_START, manifest.state, run_id=manifest.run_id, **facts))
        ledger.append(
            record(
                Kind.CONVERTED,
                manifest.state,
                tag=manifest.tag,
                source=manifest.converted_from,
                layout=layout,
            )
        )


def config_of(foreign: ForeignFolder, out: Path, settings: Table) -> RunConfig:
    """It returns the configuration of the run. Raises ConfigurationError with all that is missing or wrong."""
    place, given = out.absolute(), flattened(settings)
    theirs = {name: value for name, value in given.items() if not name.startswith("model.")}
    changed = {name: given[name] for name in CHANGEABLE if name in given}
    named = {"run.folder": escaped(place.parent), "run.name": place.name}
    with parsed_as(ConfigurationError, "--config and --set"):
        config, problems = validated(nested(foreign.settings | theirs | changed | named))
    problems += model_problems(foreign, given)
    if config is None or problems:
        raise ConfigurationError(
            f"{count(problems)} in what is to be trained on; see --config and --set", problems
        )
    return config


def model_problems(foreign: ForeignFolder, given: Table) -> Iterator[Problem]:
    """It yields the keys of [model] that would make another model of it."""
    has = flattened({"model": foreign.config.model.model_dump(mode="json")})
    for key, value in given.items():
        if key.startswith("model.") and key not in CHANGEABLE and (key not in has or has[key] != value):
            rule = f"that of {shown(foreign.folder)} has {shown(has[key])}" if key in has else "unknown key"
            yield Problem(key, rule, "leave it out", shown(value))


def _write_tensors(path: Path, config: RunConfig, tensors: ForeignTensors) -> Path:
    """It writes the weights, one at a time."""
    sizes = config.model.outline(config.data).tensors
    with TensorFileWriter(
        path, {key_of(name): TensorEntry(torch.float32, sizes[name].shape) for name in tensors.names}
    ) as file:
        for name in tensors.names:
            file.write(key_of(name), tensors.read(name))
    return path
