"""State goes from the engine of a rank to its files, and from the files of all ranks back, in whatever layout."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.parsing import reason
from pretrain.backend.host_copy import HostCopies, copied
from pretrain.checkpoint.manifest import Manifest
from pretrain.checkpoint.random_state import capture_random_state
from pretrain.checkpoint.rank_files import (
    RankFiles,
    RankState,
    flush,
    rank_file,
    read_rank_state,
    write_companion,
    write_rank_state,
    write_tensors,
)
from pretrain.checkpoint.restored import Restored, proof_of
from pretrain.checkpoint.saved_tensors import SavedTensors, read_from
from pretrain.checkpoint.tag import Tag
from pretrain.engine.engine import TrainEngine
from pretrain.errors import Unreadable
from pretrain.models.outline import Outline


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


@dataclass(frozen=True)
class RankSource:
    """It gives a rank its share of saved tensors, and the numbers beside them; see `pretrain.backend.pieces`."""

    saved: SavedTensors
    outline: Outline
    """Of the model that is filled."""
    rank: int
    """Tensor-parallel."""
    size: int
    scalars: Mapping[str, Any]

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
        Unreadable: a file cannot be read, or there is no memory for what is in it.
        CheckpointError: one of them is not what its manifest says.
    """
    mesh, own = engine.mesh, engine.mesh.rank if same else 0
    with read_from(folder / rank_file(own)):
        state = read_rank_state(folder, own)
    saved = SavedTensors(folder, manifest)
    try:
        engine.fill(RankSource(saved, outline, mesh.tensor.rank, mesh.tensor.size, state.scalars))
    except (RuntimeError, MemoryError) as error:  # what torch says where memory lacks
        raise Unreadable(f"{folder}: rank {mesh.rank} cannot load it: {reason(error)}") from error
    return state if same else RankState(state.data, state.watchdog, {}, state.scalars)


def complete(
    engine: TrainEngine, tag: Tag, manifest: Manifest, state: RankState, converted: str
) -> tuple[Restored | None, str]:
    """It completes what every rank has filled, all ranks together, and also returns what is wrong with the outcome.

    `converted` says in what the layouts differ.
    """
    same = not converted
    engine.complete(state.scalars.get("probes", {}))
    restored = Restored(
        tag=tag,
        state=manifest.state,
        data=state.data,
        watchdog=state.watchdog,
        random=state.random,
        run_id=manifest.run_id,
        proof=proof_of(manifest.checksums) if manifest.checksums and same else "",
        converted=converted,
    )
    rank = engine.mesh.rank
    if manifest.checksums and same and engine.checksum() != manifest.checksums[rank]:
        return restored, f"weights or optimizer on rank {rank} are not those that were saved"
    return restored, ""
