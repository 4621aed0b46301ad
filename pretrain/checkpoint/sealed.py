"""A sealed checkpoint is opened outside of a run, to be used, exported or converted: whole, verified, without ranks."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_pipeline.parsing import read_whole
from data_pipeline.shown import shown
from pretrain.checkpoint.certificate import Certificate, read_certificate
from pretrain.checkpoint.lifecycle import CONDEMNED, best, candidates
from pretrain.checkpoint.manifest import MANIFEST, Manifest, other_format, read_manifest, verify
from pretrain.checkpoint.saved_tensors import SavedTensors
from pretrain.checkpoint.tag import Tag
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.run_folder import CHECKPOINTS, CONFIG


@dataclass(frozen=True)
class SealedCheckpoint:
    """It is a checkpoint whose every byte is what was sealed."""

    folder: Path
    manifest: Manifest
    config: RunConfig
    """Of the run, when it was saved."""

    @property
    def run_folder(self) -> Path | None:
        """This is the folder of the run that it lies in; none: it was copied out of one."""
        checkpoints = self.folder.absolute().parent
        return checkpoints.parent if checkpoints.name == CHECKPOINTS else None

    @property
    def certificate(self) -> Certificate | None:
        """It has one if it was certified."""
        try:
            return read_certificate(self.folder)
        except CheckpointError:
            return None

    @cached_property
    def tensors(self) -> SavedTensors:
        """It reads its tensors by name. Raises what `SavedTensors` does."""
        return SavedTensors(self.folder, self.manifest)

    @property
    def step(self) -> int:
        """It was taken after this step."""
        return self.manifest.state.step

    def has(self, name: str) -> bool:
        """It tells whether a file of this name goes with the model."""
        return name in self.manifest.files

    def companion(self, name: str) -> bytes:
        """It returns a file that goes with the model, such as the tokenizer.

        Raises CheckpointError where it has none of that name.
        """
        if not self.has(name):
            raise CheckpointError(f"{self.folder}: has no {name}")
        try:
            return read_whole(self.folder / name, follow=False)
        except OSError as error:
            raise CheckpointError(f"{self.folder / name}: {error.strerror}") from error


def open_sealed(where: Path) -> SealedCheckpoint:
    """It opens a checkpoint: the folder of one, `RUN@TAG`, or that of the run in a folder which is to be used: the one
    with the lowest validation loss if the run keeps that, else the newest certified one, else the newest.

    Raises:
        ConfigurationError: there is no such folder.
        CheckpointError: there is none in it, it is damaged or condemned.
    """
    folder = _found(where)
    if (folder / CONDEMNED).exists():
        raise CheckpointError(f"{shown(folder)}: is condemned: it is from behind the onset of trouble")
    if other := other_format(folder):
        raise CheckpointError(other)
    manifest = read_manifest(folder)
    if problems := verify(folder, manifest, manifest.files):
        raise CheckpointError("; ".join([*problems, *_others(folder)]))
    if CONFIG not in manifest.files:
        raise CheckpointError(f"{shown(folder)}: has no {CONFIG}, which says what model it holds")
    try:
        config = load_config(folder / CONFIG)
    except ConfigurationError as error:
        raise CheckpointError(f"its configuration is none of this version: {error}") from error
    return SealedCheckpoint(folder, manifest, config)


def _others(folder: Path) -> list[str]:
    """It names the other checkpoints of a run, where one is damaged."""
    others = [str(tag) for tag in candidates(folder.parent).sealed if str(tag) != folder.name]
    return [f"there are also {', '.join(others)}, as RUN@TAG"] if others else []


def _found(where: Path) -> Path:
    """It returns the folder of a checkpoint that is meant."""
    if (where / MANIFEST).exists():
        return where
    path, _, name = str(where).rpartition("@")
    if not where.exists() and path:
        tag = Tag.parse(name)
        if tag is None:
            raise ConfigurationError(
                f"{shown(where)}: {shown(name)} is no tag; they look like step00001200-a3"
            )
        return _checkpoints(Path(path)) / str(tag)
    checkpoints = _checkpoints(where)
    found = candidates(checkpoints)
    tags = [*found.certified, *found.sealed]
    if not tags:
        raise CheckpointError(f"{shown(where)}: the run has no checkpoint that can be used")
    return checkpoints / str(best(checkpoints, found.sealed) or max(found.certified, default=tags[0]))


def _checkpoints(run: Path) -> Path:
    if not (run / CHECKPOINTS).is_dir():
        raise ConfigurationError(
            f"{shown(run)}: neither a checkpoint nor a run: it has neither {MANIFEST} nor {CHECKPOINTS}/"
        )
    return run / CHECKPOINTS
