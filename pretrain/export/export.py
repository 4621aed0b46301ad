"""A checkpoint is exported: plain matrices in one file of tensors, with what is needed to use them beside it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from data_pipeline.shown import shown
from parallel.config import ParallelConfig
from pretrain.checkpoint.output import written
from pretrain.checkpoint.tensor_file import TensorEntry, TensorFileWriter
from pretrain.config.loader import dump_config
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.export.card import CARD, model_card
from pretrain.export.folding import PlainTensors, plain_model
from pretrain.export.foreign import WEIGHTS
from pretrain.export.source import Exported, Source
from pretrain.inference.model import DTYPES
from pretrain.run_folder import CONFIG
from pretrain.tasks.architecture import Architecture, TensorMap
from pretrain.tasks.registry import TASKS

Format = Literal["safetensors", "huggingface"]
METADATA = {"format": "pt"}
"""Without it `transformers` refuses a file."""


def export(source: Source, to: Format, out: Path, dtype: str | None = None) -> Exported:
    """It writes a checkpoint into the folder `out`, which is not there yet or empty.

    `dtype` is one of DTYPES; none: that in which the run computes.

    Raises:
        ConfigurationError: no architecture holds the model, or `out` is taken.
        DataError: what the model is used with is not there, or cannot be converted.
        CheckpointError: the checkpoint is not what its manifest says, or the disk refuses.
    """
    config, name = source.config, dtype or source.config.precision.dtype
    architecture = architecture_of(config) if to == "huggingface" else None
    plain = plain_config(config, biases=architecture is not None and architecture.has_biases)
    tensors = PlainTensors(
        source.tensors,
        config.model.outline(config.data),
        plain.model.outline(plain.data),
        DTYPES[name],
        folds=getattr(config.model, "reparametrization", "none") == "sigma",
    )
    if architecture is None:
        maps = [TensorMap(name, (name,)) for name in tensors.names]
    else:
        maps = [pair for pair in architecture.tensors(plain.model) if pair.ours in tensors.names]
    entries = {
        theirs: TensorEntry(DTYPES[name], shape)
        for pair in maps
        for theirs, shape in zip(pair.theirs, pair.shapes(tensors.shape(pair.ours)), strict=True)
    }
    exported = Exported(
        architecture.name if architecture else "",
        len(entries),
        sum(entry.size for entry in entries.values()),
        name,
    )
    documents = _documents(source, plain, architecture, DTYPES[name])
    documents[CARD] = model_card(source, architecture, exported).encode()
    with written(out, sum(entry.nbytes for entry in entries.values())) as folder:
        for file, content in documents.items():
            (folder / file).write_bytes(content)
        _write(folder / WEIGHTS, entries, maps, tensors)
    return exported


def architecture_of(config: RunConfig) -> Architecture[Any]:
    """It returns the architecture that holds the model of a run once it is folded.

    Raises ConfigurationError, with the keys that stand in the way of each that there is for its kind.
    """
    known = TASKS[config.model.kind].architectures
    problems = []
    for architecture in known:
        found = [*architecture.obstacles(plain_config(config, biases=architecture.has_biases).model)]
        if not found:
            return architecture
        problems += found
    names = ", ".join(architecture.name for architecture in known) or "there is none for its kind"
    raise ConfigurationError(
        f"no architecture of Hugging Face's that is known here ({names}) computes what {shown(config.run.name)} does; "
        f"`--to safetensors` takes every model{'. In the way are:' if problems else ''}",
        problems,
    )


def plain_config(config: RunConfig, *, biases: bool = False) -> RunConfig:
    """It returns the configuration of the plain model, for one process."""
    model = plain_model(config.model, biases=biases)
    return config.model_copy(update={"model": model, "parallel": ParallelConfig()})


def _documents(
    source: Source, plain: RunConfig, architecture: Architecture[Any] | None, dtype: torch.dtype
) -> dict[str, bytes]:
    """It returns the files beside the tensors, by name. Raises DataError."""
    if architecture is None:
        return {CONFIG: dump_config(plain).encode(), **source.companions}
    tables = architecture.documents(plain.model, plain.data, dtype, source.companions)
    return {name: _json(table) for name, table in tables.items()} | dict(source.companions)


def _json(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()


def _write(
    path: Path, entries: Mapping[str, TensorEntry], maps: Sequence[TensorMap], tensors: PlainTensors
) -> None:
    """It writes the tensors, one of ours at a time."""
    with TensorFileWriter(path, entries, METADATA) as file:
        for pair in maps:
            for theirs, part in zip(pair.theirs, pair.split(tensors.read(pair.ours)), strict=True):
                file.write(theirs, part)
