"""One rank's share of a checkpoint is written and described here, looked through, loaded and proven."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.files import create_file, sync_folder, write_all
from data_pipeline.parsing import parsed_as
from pretrain.backend.host_copy import HostCopies, copied
from pretrain.backend.pieces import Scalars
from pretrain.backend.state_file import fsync_and_hash, write_state
from pretrain.checkpoint.manifest import FileRecord, Manifest, verify
from pretrain.checkpoint.random_state import capture_random_state
from pretrain.checkpoint.restored import Restored, proof_of
from pretrain.checkpoint.saved_tensors import SavedTensors
from pretrain.checkpoint.tag import Tag
from pretrain.checkpoint.tensor_file import SUFFIX, TensorEntry, TensorFileWriter
from pretrain.engine.engine import TrainEngine
from pretrain.errors import CheckpointError
from pretrain.models.outline import Outline


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
    scalars: dict[str, Scalars]


def write_files(
    engine: TrainEngine,
    folder: Path,
    data: Mapping[str, Any],
    watchdog: Mapping[str, Any],
    companions: Mapping[str, bytes],
    thread: Executor,
    copies: HostCopies | None,
) -> Callable[[], RankFiles]:
    """It writes this rank's files, or with `copies` copies what they will hold; all ranks together.

    `thread` computes the checksum meanwhile. What is returned does the rest, and may run beside training.

    Raises:
        OSError: the disk or the host's memory has no room.
    """
    rank = engine.mesh.rank
    checksum = thread.submit(engine.checksum)
    pieces = {piece.key: piece.tensor for piece in engine.to_save()}
    own = RankState(dict(data), dict(watchdog), capture_random_state(), copied(engine.scalars()))
    later: list[Callable[[], Path]] = [partial(write_rank_state, folder, rank, own)]
    try:
        write = partial(write_tensors, folder, rank)
        if copies and (held := copies.take("pieces", pieces)) is not None:
            later.append(partial(write, held))
        else:
            path = write(pieces)
            later.append(lambda: path)
        if rank == 0:
            later += [partial(write_companion, folder / name, text) for name, text in companions.items()]
        if engine.mesh.device.type == "cuda":
            torch.cuda.synchronize(engine.mesh.device)
        return partial(flush, folder, rank, later, checksum.result())
    except (OSError, RuntimeError) as error:
        checksum.exception()  # nothing may look at the state once training goes on
        raise OSError(f"rank {rank} could not write to {folder}: {error}") from error


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


@dataclass(frozen=True)
class RankSource:
    """It gives a rank its share of saved tensors, and the numbers beside them; see `pretrain.backend.pieces`."""

    saved: SavedTensors
    outline: Outline
    """Of the model that is filled."""
    rank: int
    """Tensor-parallel."""
    size: int
    scalars: Mapping[str, Scalars]

    @property
    def moments(self) -> tuple[str, ...]:
        """These kinds of tensors the optimizer keeps."""
        return self.saved.moments

    def read(self, name: str, kind: str, start: int, count: int) -> Tensor:
        """It returns elements of this rank's share, flat. It raises what `SavedTensors.read` does."""
        cut = self.outline.tensors[name]
        return self.saved.read_share(name, kind, cut, self.rank, self.size, start, count)


def fill(engine: TrainEngine, folder: Path, manifest: Manifest, outline: Outline, *, same: bool) -> RankState:
    """It puts the tensors of a checkpoint whose files are sound into the engine of this rank, and returns the rest.

    `same` tells that the layout is that of the checkpoint: then the rank has a state of its own there.

    Raises:
        OSError: a file cannot be read.
        CheckpointError: one of them is not what its manifest says.
    """
    mesh = engine.mesh
    state = read_rank_state(folder, mesh.rank if same else 0)
    with parsed_as(CheckpointError, folder):
        saved = SavedTensors(folder, manifest)
        engine.fill(RankSource(saved, outline, mesh.tensor.rank, mesh.tensor.size, state.scalars))
    return state if same else RankState(state.data, state.watchdog, {}, state.scalars)


def complete(
    engine: TrainEngine, tag: Tag, manifest: Manifest, state: RankState, *, same: bool
) -> tuple[Restored | None, str]:
    """It completes what every rank has filled, all ranks together, and also returns what is wrong with the outcome."""
    engine.complete(state.scalars.get("probes", {}))
    restored = Restored(
        tag=tag,
        state=manifest.state,
        data=state.data,
        watchdog=state.watchdog,
        random=state.random,
        run_id=manifest.run_id,
        proof=proof_of(manifest.checksums) if manifest.checksums and same else "",
    )
    rank = engine.mesh.rank
    if manifest.checksums and same and engine.checksum() != manifest.checksums[rank]:
        return restored, f"weights or optimizer on rank {rank} are not those that were saved"
    return restored, ""


def tensor_file(rank: int) -> str:
    """It names the file with a rank's tensors."""
    return f"state_{rank:05d}{SUFFIX}"


def rank_file(rank: int) -> str:
    """It names the file of what a rank has beside tensors: data position, watchdog, random state, counts."""
    return f"rank_{rank:05d}.pt"
