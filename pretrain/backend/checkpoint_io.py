"""A DeepSpeed engine writes and reads checkpoint files so that no rank hangs and nothing foreign runs."""

import copyreg
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from pretrain.backend.host_copy import HostCopies
from pretrain.backend.quiet import quiet
from pretrain.backend.state_file import write_state


@dataclass(frozen=True)
class SavedFiles:
    """These files are what this rank has of a checkpoint."""

    paths: tuple[Path, ...]
    """Written."""
    deferred: Mapping[Path, object]
    """Copies in host memory that are to be written, good until the next save."""
    failure: Exception | None


class GuardedCheckpointEngine(TorchCheckpointEngine):
    """An engine is given this writer and reader of files in place of DeepSpeed's own.

    - Files may be deferred: what they are to hold is copied, for a thread to write while training goes on.
    - A failing write is remembered in `failure` instead of raised: `save_checkpoint` has barriers ahead, where the
      other ranks would wait for the one that raised until the collective times out.
    - Files are read with `weights_only=True` and the four classes that DeepSpeed pickles; its own engine
      unpickles anything (deepspeedai/DeepSpeed#6751).
    - The ZeRO stage is written as a call of its class: members of an Enum pickle as `getattr` under some Pythons
      (seen in 3.11.2), which `weights_only` must refuse.
    """

    def __init__(self) -> None:
        super().__init__()
        self.zipfile_serialization = True
        copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))
        self._copies: HostCopies | None = None
        self.written: list[Path] = []
        self.deferred: dict[Path, object] = {}
        self.failure: Exception | None = None

    def begin(self, copies: HostCopies | None) -> None:
        """It forgets the last save. With `copies` the files of this one are deferred, as far as memory allows."""
        self._copies = copies
        self.written, self.deferred, self.failure = [], {}, None

    def save(self, state_dict: object, path: str) -> None:
        """DeepSpeed calls it for each file."""
        file = Path(path)
        try:
            if self._copies and (copy := self._copies.take(file.name, state_dict)) is not None:
                self.deferred[file] = copy
            else:
                write_state(state_dict, file)
                self.written.append(file)
        except (OSError, RuntimeError) as error:
            self.failure = self.failure or error

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """DeepSpeed calls it before the first file."""
        try:
            super().makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.failure = self.failure or error

    def load(self, path: str, map_location: object = None) -> object:
        """DeepSpeed calls it for each file."""
        return load_plain(Path(path), mmap=False)


def load_plain(path: Path, *, mmap: bool = True) -> object:
    """It reads a checkpoint file of tensors, plain values and the classes that DeepSpeed pickles, and refuses all
    else."""
    safe = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
    with torch.serialization.safe_globals(safe):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def save_weights_and_optimizer(
    engine: DeepSpeedEngine, checkpoints: Path, tag: str, copies: HostCopies | None
) -> SavedFiles:
    """This rank writes its share to `checkpoints/tag`, or with `copies` copies it to be written later.

    Nothing is raised for a full disk.
    """
    guard = engine.checkpoint_engine
    guard.begin(copies)
    with quiet():
        engine.save_checkpoint(str(checkpoints), tag=tag, save_latest=False)
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    return SavedFiles(tuple(guard.written), guard.deferred, guard.failure)


def load_weights_and_optimizer(engine: DeepSpeedEngine, checkpoints: Path, tag: str) -> None:
    """This rank reads its share of a checkpoint that has been verified."""
    with quiet():
        path, _ = engine.load_checkpoint(str(checkpoints), tag=tag, load_lr_scheduler_states=False)
    assert path is not None, "a verified checkpoint lacks files that DeepSpeed looks for"
