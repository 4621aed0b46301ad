"""The files of one rank in a checkpoint: what is in them, how they are written, described and looked through."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.files import create_file, sync_folder, write_all
from data_pipeline.parsing import parsed_as
from pretrain.backend.state_file import fsync_and_hash, write_state
from pretrain.checkpoint.manifest import FileRecord, Manifest, verify
from pretrain.checkpoint.tensor_file import SUFFIX, TensorEntry, TensorFileWriter
from pretrain.errors import CheckpointError


@dataclass(frozen=True)
class RankFiles:
    """It describes what a rank has on its disk."""

    files: dict[str, FileRecord] = field(default_factory=dict)
    checksum: int = 0
    """Of the bits of its weights and its part of the optimizer."""
    problem: str = ""


@dataclass(frozen=True)
class RankState:
    """It is what a rank has beside tensors of the model."""

    data: dict[str, Any]
    """Position of the data stream."""
    watchdog: dict[str, Any]
    random: dict[str, Any]
    """Random state of this rank; empty where no rank has saved it."""
    scalars: dict[str, Any]
    """Numbers that go with the tensors, equal on all ranks: see `TrainEngine.scalars`."""


def flush(folder: Path, rank: int, later: Sequence[Callable[[], Path]], checksum: int) -> RankFiles:
    """It writes what was deferred, forces all to disk, and describes it.

    It needs no other rank, and may run beside training.
    """
    try:
        files = described([write() for write in later], rank)
        sync_folder(folder)
    except Exception as error:  # the other ranks wait for an answer
        return RankFiles(problem=f"rank {rank} could not write to {folder}: {error}")
    return RankFiles(files, checksum)


def described(paths: Iterable[Path], rank: int) -> dict[str, FileRecord]:
    """It forces files to disk and returns what the manifest says of them. Raises OSError."""
    digests = {path.name: fsync_and_hash(path) for path in paths}
    return {name: FileRecord(size=d.size, sha256=d.sha256, rank=rank) for name, d in digests.items()}


def write_tensors(folder: Path, rank: int, pieces: Mapping[str, Tensor]) -> Path:
    """It writes the tensors of a rank under their keys. Raises OSError."""
    path = folder / tensor_file(rank)
    with TensorFileWriter(path, {key: TensorEntry.of(tensor) for key, tensor in pieces.items()}) as file:
        for key, tensor in pieces.items():
            file.write(key, tensor)
    return path


def write_rank_state(folder: Path, rank: int, state: RankState) -> Path:
    """It writes what a rank has beside tensors. Raises OSError."""
    path = folder / rank_file(rank)
    texts = {"data": json.dumps(state.data), "watchdog": json.dumps(state.watchdog)}
    write_state({**texts, "random": state.random, "scalars": state.scalars}, path)
    return path


def read_rank_state(folder: Path, rank: int) -> RankState:
    """It reads what a rank has saved beside tensors; nothing but tensors and plain values is unpickled.

    Raises:
        OSError: it cannot be read.
        CheckpointError: it holds anything else.
    """
    path = folder / rank_file(rank)
    with parsed_as(CheckpointError, path):
        own = torch.load(path, map_location="cpu", weights_only=True)
        data, watchdog = json.loads(own["data"]), json.loads(own["watchdog"])
        return RankState(data, watchdog, own["random"], own["scalars"])


def write_companion(path: Path, content: bytes) -> Path:
    """It writes a file that goes with the weights. Raises OSError."""
    with create_file(path) as file:
        write_all(file.fileno(), content)
    return path


def read_again(folder: Path, manifest: Manifest, names: list[str]) -> str:
    """It returns what is wrong with these files on disk. It may run beside training."""
    try:
        return "; ".join(verify(folder, manifest, names, from_disk=True))
    except Exception as error:  # the other ranks wait for an answer
        return f"{folder}: cannot be read again: {error!r}"


def damage(folder: Path, manifest: Manifest, rank: int, ranks: int) -> str:
    """It returns what is wrong with this rank's share of all files: the ranks look through them together."""
    return "; ".join(verify(folder, manifest, sorted(manifest.files)[rank::ranks]))


def files_of(manifest: Manifest, rank: int) -> list[str]:
    """It returns the files that a rank has written."""
    return [name for name, record in manifest.files.items() if record.rank == rank]


def tensor_file(rank: int) -> str:
    """It names the file with a rank's tensors."""
    return f"state_{rank:05d}{SUFFIX}"


def rank_file(rank: int) -> str:
    """It names the file of what a rank has beside tensors: data position, watchdog, random state, counts."""
    return f"rank_{rank:05d}.pt"
