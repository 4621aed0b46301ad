"""A folder of Hugging Face's is read: what its `config.json` says in our terms, and its tensors by our names.

Its files of tensors are read as the format describes them; nothing is unpickled and no code of the folder runs.
"""

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.parsing import parse_json, parsed_as, read_whole
from data_pipeline.shown import shown
from pretrain.checkpoint.saved_tensors import read_from
from pretrain.checkpoint.tensor_file import TensorFile
from pretrain.config.loader import validated
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.models.outline import Outline
from pretrain.tasks.architecture import Architecture, Table, TensorMap, flattened, nested
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.registry import TASKS

SETTINGS, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
"""The name of a file in a folder."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""All numbers of these are numbers of fp32."""


class ForeignFolder:
    """It is a folder with `config.json` and files of tensors."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError where the architecture is not known or cannot be trained on here, and
        CheckpointError where files are missing or damaged."""
        self.folder = folder
        settings = _document(folder / SETTINGS)
        self.kind, self.architecture = _architecture(folder, settings)
        with parsed_as(ConfigurationError, folder / SETTINGS):
            self.sections: Table = self.architecture.sections(settings)
            """Keys of our sections, as TOML has them."""
        self.files = _tensors(folder)
        """The file of each tensor, by the name that it has there."""
        if not self.files:
            raise CheckpointError(f"{shown(folder)}: its files hold no tensors")

    @property
    def dtype(self) -> str:
        """The `precision.dtype` that loses nothing of its tensors and takes least."""
        dtypes = {file.entries[name].dtype for name, file in self.files.items()}
        return "bf16" if dtypes == {torch.bfloat16} else "fp32"

    @cached_property
    def config(self) -> RunConfig:
        """It is the configuration of a run with such a model, whose data and optimizer nobody knows.

        Raises ConfigurationError where our models cannot have such settings.
        """
        unknown = {
            "run.name": re.sub(r"[^A-Za-z0-9]", "-", self.folder.absolute().name).strip("-") or "model",
            "run.steps": 1,
            "data.sources": [{"path": str(self.folder)}],
            "data.micro_batch_size": 1,
            "data.global_batch_size": 1,
            "optimizer.learning_rate": 1.0,
        }
        config, problems = validated(nested(unknown | self.settings))
        if config is None or problems:
            raise ConfigurationError(f"{shown(self.folder / SETTINGS)}: no model of ours", problems)
        return config

    @property
    def settings(self) -> Table:
        """These are the keys of our sections that follow from it, dotted."""
        return {"precision.dtype": self.dtype, "model.kind": self.kind, **flattened(self.sections)}

    def tensors(self, model: TaskConfig, outline: Outline) -> "ForeignTensors":
        """It returns the tensors of a model that was made of the sections, and has this outline.

        Raises CheckpointError where tensors are missing, too many, or not of the shape that the settings give them.
        """
        with parsed_as(CheckpointError, self.folder):
            return ForeignTensors(self, self.architecture.tensors(model), outline)


class ForeignTensors:
    """These are the tensors of a folder by our names: whole, fp32, with the padding of our vocabulary."""

    def __init__(self, folder: ForeignFolder, maps: list[TensorMap], outline: Outline) -> None:
        self._outline = outline
        self._maps = {pair.ours: pair for pair in maps if pair.ours in outline.tensors}
        self._rows = {f"{layer.name}.weight": layer.table.rows for layer in outline.layers if layer.table}
        self._found = self._named(folder)
        self._leave_out_copies(folder, maps)
        self._check(folder)

    @property
    def names(self) -> list[str]:
        """These are our names, in the order of the layers."""
        return list(self._maps)

    def shape(self, name: str) -> tuple[int, ...]:
        """It returns the shape of a tensor."""
        return self._outline.tensors[name].shape

    def read(self, name: str) -> Tensor:
        """It returns a tensor. Raises CheckpointError where a file has changed meanwhile or cannot be read, and for
        numbers that are not finite."""
        pair = self._maps[name]
        tensor = pair.join([_read(*self._found[theirs]).float() for theirs in pair.theirs]).contiguous()
        rows = self._outline.tensors[name].shape[0]
        padding = rows - len(tensor)
        return F.pad(tensor, (0, 0, 0, padding)) if padding else tensor

    def _named(self, folder: ForeignFolder) -> dict[str, tuple[TensorFile, str]]:
        """It returns the file of each weight and its name there, by the name that the maps have for it."""
        found: dict[str, tuple[TensorFile, str]] = {}
        for there, file in folder.files.items():
            name = folder.architecture.canonical(there)
            if name is None:
                continue
            if name in found:
                raise CheckpointError(
                    f"{shown(folder.folder)}: {shown(there)} and {shown(found[name][1])} are the same"
                )
            found[name] = file, there
        return found

    def _leave_out_copies(self, folder: ForeignFolder, maps: list[TensorMap]) -> None:
        """It forgets what a tied layer has once more. Raises CheckpointError where that is something else."""
        owners = {f"{layer.name}.weight": f"{layer.tied_to}.weight" for layer in self._outline.layers}
        for pair in maps:
            if pair.ours in self._maps or (there := pair.theirs[0]) not in self._found:
                continue
            (theirs,) = self._maps[owners[pair.ours]].theirs
            if theirs in self._found and not _same(self._found[there], self._found[theirs]):
                raise CheckpointError(
                    f"{shown(folder.folder)}: {there} differs from {theirs}, but {SETTINGS} says that they are tied; "
                    "which of both is meant is not known here: set tie_word_embeddings there to false if both are"
                )
            del self._found[there]

    def _check(self, folder: ForeignFolder) -> None:
        expected = {
            theirs: shape
            for name, pair in self._maps.items()
            for theirs, shape in zip(pair.theirs, pair.shapes(self._shape(name)), strict=True)
        }
        where = shown(folder.folder)
        if missing := sorted(expected.keys() - self._found.keys()):
            raise CheckpointError(
                f"{where}: tensors are missing ({len(missing)}), such as {shown(missing[0])}"
            )
        if others := sorted(self._found.keys() - expected.keys()):
            raise CheckpointError(
                f"{where}: {folder.architecture.name} has no tensor {shown(others[0])} by these settings, and it may "
                f"change what the model computes ({len(others)} such tensors)"
            )
        for theirs, shape in expected.items():
            file, there = self._found[theirs]
            entry = file.entries[there]
            if entry.shape != shape:
                raise CheckpointError(
                    f"{where}: {shown(there)} is {entry.shape}, by the settings it is {shape}"
                )
            if entry.dtype not in FLOATS:
                raise CheckpointError(f"{where}: {shown(there)} holds {entry.dtype}, not fp32, bf16 or fp16")

    def _shape(self, name: str) -> tuple[int, ...]:
        """It returns the shape of our tensor without padding."""
        rows, *columns = self._outline.tensors[name].shape
        return (self._rows.get(name, rows), *columns)


def _same(one: tuple[TensorFile, str], other: tuple[TensorFile, str]) -> bool:
    """It tells whether two tensors of files are equal."""
    (file, name), (other_file, other_name) = one, other
    return torch.equal(_read(file, name), _read(other_file, other_name))


def _read(file: TensorFile, name: str) -> Tensor:
    with read_from(file.path):
        tensor = file.read(name)
    if not tensor.isfinite().all():
        raise CheckpointError(
            f"{shown(file.path)}: {shown(name)} holds NaN or infinity; choose another model"
        )
    return tensor


def _architecture(folder: Path, settings: Table) -> tuple[str, Architecture[Any]]:
    """It returns the kind of task and the architecture of a model's settings."""
    known = {
        architecture.model_type: (kind, architecture)
        for kind, task in TASKS.items()
        for architecture in task.architectures
    }
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        raise ConfigurationError(
            f"{shown(folder / SETTINGS)}: model_type is {shown(kind)}; what can be read is {', '.join(known)}"
        )
    return known[kind]


def _tensors(folder: Path) -> dict[str, TensorFile]:
    """It returns the file of each tensor. Raises CheckpointError."""
    names = [WEIGHTS]
    if os.path.lexists(folder / INDEX):
        names = _listed(folder)
    elif not os.path.lexists(folder / WEIGHTS):
        if any(os.path.lexists(folder / name) for name in PICKLES):
            raise CheckpointError(
                f"{shown(folder)}: its tensors are pickled ({PICKLES[0]}), and loading a pickle runs whatever code is "
                "in it; have `transformers` write them as safetensors (save_pretrained), or look for such a version"
            )
        raise CheckpointError(f"{shown(folder)}: neither {WEIGHTS} nor {INDEX} is there")
    found: dict[str, TensorFile] = {}
    for name in names:
        file = _file(folder / name)
        if twice := sorted(found.keys() & file.entries.keys()):
            raise CheckpointError(f"{shown(folder)}: {shown(twice[0])} is in more than one file")
        found |= dict.fromkeys(file.entries, file)
    return found


def _file(path: Path) -> TensorFile:
    try:
        # A cache of Hugging Face's is made of links.
        return TensorFile(Path(os.path.realpath(path)))
    except OSError as error:
        raise CheckpointError(f"{shown(path)}: {error.strerror}") from error


def _listed(folder: Path) -> list[str]:
    """It returns the files that the index of a folder names, which all lie in it."""
    with parsed_as(CheckpointError, folder / INDEX):
        names = sorted(set(_document(folder / INDEX)["weight_map"].values()))
        if any(not _FILE.fullmatch(name) for name in names):
            raise ValueError("weight_map names what is no file of the folder")
    return names


def _document(path: Path) -> Table:
    """It reads a JSON object. Raises CheckpointError."""
    try:
        with parsed_as(CheckpointError, path):
            content = parse_json(read_whole(path))
            if not isinstance(content, Mapping):
                raise ValueError("not a JSON object")
            return dict(content)
    except OSError as error:
        raise CheckpointError(f"{shown(path)}: {error.strerror}") from error
