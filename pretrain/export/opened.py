"""A model is opened to be used: a sealed checkpoint, an export of either kind, or a folder of Hugging Face's."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from data_pipeline.parsing import read_whole
from data_pipeline.shown import shown
from pretrain.checkpoint.certificate import CERTIFICATE, Certificate, read_certificate
from pretrain.checkpoint.lifecycle import best, candidates
from pretrain.checkpoint.manifest import MANIFEST, read_manifest
from pretrain.checkpoint.saved_tensors import read_from
from pretrain.checkpoint.sealed import open_sealed
from pretrain.checkpoint.tensor_file import TensorFile
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError
from pretrain.export.foreign import SETTINGS, WEIGHTS, ForeignFolder
from pretrain.inference.model import TensorSource
from pretrain.run_folder import CHECKPOINTS, CONFIG


class Usable(Protocol):
    """It is a model with what it is used with."""

    @property
    def folder(self) -> Path:
        """It lies there."""
        ...

    @property
    def config(self) -> RunConfig:
        """Its settings."""
        ...

    @property
    def certificate(self) -> Certificate | None:
        """It has one if it is a checkpoint that was certified."""
        ...

    @property
    def step(self) -> int | None:
        """It was taken after this step of its run; none: that is not known."""
        ...

    @property
    def tensors(self) -> TensorSource:
        """It reads its tensors by name. Raises CheckpointError."""
        ...

    def has(self, name: str) -> bool:
        """It tells whether a file of this name goes with the model."""
        ...

    def companion(self, name: str) -> bytes:
        """It returns a file that goes with the model. Raises CheckpointError where it has none of that name."""
        ...


@dataclass(frozen=True)
class Folder:
    """It is a folder that is no checkpoint: nothing vouches for its bytes."""

    folder: Path
    config: RunConfig
    tensors: TensorSource
    certificate: None = None
    step: None = None

    def has(self, name: str) -> bool:
        """It tells whether a file of this name goes with the model."""
        return (self.folder / name).is_file()

    def companion(self, name: str) -> bytes:
        """It returns a file that goes with the model. Raises CheckpointError where it has none of that name."""
        try:
            return read_whole(self.folder / name)
        except OSError as error:
            raise CheckpointError(f"{shown(self.folder / name)}: {error.strerror}") from error


class PlainFile:
    """These are the tensors of an export by our own names."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError where it is no file of tensors."""
        try:
            self._file = TensorFile(path)
        except OSError as error:
            raise CheckpointError(f"{shown(path)}: {error.strerror}") from error

    @property
    def names(self) -> Collection[str]:
        """These are the names of all tensors."""
        return self._file.entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """It returns the shape of a tensor."""
        return self._file.entries[name].shape

    def read(self, name: str) -> Tensor:
        """It returns a tensor. Raises CheckpointError."""
        with read_from(self._file.path):
            return self._file.read(name).float()


def open_model(where: Path) -> Usable:
    """It opens what `open_sealed` does, or a folder that `surefoot export` or `transformers` has written.

    Raises:
        ConfigurationError: there is no such folder, or it holds a model that is none of ours.
        CheckpointError: there is none in it, it is damaged or condemned.
    """
    if (where / MANIFEST).exists():
        return open_sealed(where)
    if (where / SETTINGS).exists():
        foreign = ForeignFolder(where)
        config = foreign.config
        return Folder(where, config, foreign.tensors(config.model, config.model.outline(config.data)))
    if (where / WEIGHTS).exists():
        return Folder(where, load_config(where / CONFIG), PlainFile(where / WEIGHTS))
    return open_sealed(where)


def _why_older(newest: Path) -> str:
    """It says why an older checkpoint than the newest one is used."""
    if not (newest / CERTIFICATE).exists():
        return "not certified"
    try:
        read_manifest(newest)
        read_certificate(newest)
    except CheckpointError as error:
        return f"damaged: {error}"
    return "certified by now"


def told(where: Path, model: Usable) -> str:
    """It says which model was opened by `where`, and what is newer, where that names a run alone."""
    text = f"{shown(model.folder)} ({'certified' if model.certificate else 'not certified'})"
    if (where / CHECKPOINTS).is_dir():
        found = candidates(where / CHECKPOINTS)
        newest, lowest = found.sealed[0], best(where / CHECKPOINTS, found.sealed)
        if str(lowest) == model.folder.name:
            text += ", of the lowest validation loss"
        elif str(newest) != model.folder.name:
            text += f"; {newest} is newer, and {_why_older(where / CHECKPOINTS / str(newest))}"
        if found.torn and found.torn[0] > newest:
            text += f"; {found.torn[0]} is newer, and has no {MANIFEST}: it is being saved, was cut off, or lost it"
    return text
