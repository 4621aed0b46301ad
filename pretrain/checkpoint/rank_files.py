"""One rank's share of a checkpoint is written and described here, looked through, loaded and proven."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data_pipeline.files import sync_folder
from data_pipeline.parsing import parsed_as
from parallel.mesh import ParallelMesh
from pretrain.backend.checkpoint_io import load_plain
from pretrain.backend.host_copy import copied
from pretrain.backend.state_file import fsync_and_hash, write_state
from pretrain.checkpoint.manifest import FileRecord, Manifest, verify
from pretrain.checkpoint.random_state import capture_random_state
from pretrain.checkpoint.restored import Restored, proof_of
from pretrain.checkpoint.tag import Tag
from pretrain.engine.engine import TrainEngine
from pretrain.errors import CheckpointError


@dataclass(frozen=True)
class RankFiles:
    """It describes what a rank has on its disk."""

    files: dict[str, FileRecord] = field(default_factory=dict)
    checksum: int = 0
    """Of the bits of its weights and its part of the optimizer."""
    problem: str = ""


def write_files(
    engine: TrainEngine,
    folder: Path,
    data: Mapping[str, Any],
    watchdog: Mapping[str, Any],
    thread: Executor,
    *,
    deferred: bool,
) -> Callable[[], RankFiles]:
    """It writes this rank's files, or copies what they will hold (`deferred`); all ranks together.

    `thread` computes the checksum meanwhile. What is returned does the rest, and may run beside training.

    Raises:
        OSError: the disk or the host's memory has no room.
    """
    rank = engine.mesh.rank
    checksum = thread.submit(engine.checksum)
    own = {
        "data": json.dumps(data),
        "watchdog": json.dumps(watchdog),
        "random": capture_random_state(),
        "engine": copied(engine.extra_state()),  # which `save` waits for
    }
    saved = engine.save(folder.parent, folder.name, deferred=deferred)
    try:
        if saved.failure:
            raise saved.failure
        later = {**saved.deferred, folder / rank_file(rank): own}
        return partial(flush, rank, saved.paths, later, checksum.result())
    except (OSError, RuntimeError) as error:
        checksum.exception()  # nothing may look at the state once training goes on
        raise OSError(f"rank {rank} could not write to {folder}: {error}") from error


def flush(rank: int, paths: Sequence[Path], deferred: Mapping[Path, object], checksum: int) -> RankFiles:
    """It writes what was deferred, forces it and what lies at `paths` to disk, and describes it.

    It needs no other rank, and may run beside training.
    """
    folder = next(iter(deferred)).parent
    try:
        for path, state in deferred.items():
            write_state(state, path)
        digests = {path.name: fsync_and_hash(path) for path in (*paths, *deferred)}
        sync_folder(folder)
    except Exception as error:  # the other ranks wait for an answer
        return RankFiles(problem=f"rank {rank} could not write to {folder}: {error}")
    files = {name: FileRecord(size=d.size, sha256=d.sha256, rank=rank) for name, d in digests.items()}
    return RankFiles(files, checksum)


def read_again(folder: Path, manifest: Manifest, names: list[str]) -> str:
    """It returns what is wrong with these files on disk. It may run beside training."""
    try:
        return "; ".join(verify(folder, manifest, names, from_disk=True))
    except Exception as error:  # the other ranks wait for an answer
        return f"{folder}: cannot be read again: {error!r}"


def damage(folder: Path, manifest: Manifest, mesh: ParallelMesh) -> str:
    """It returns what is wrong with the files that this rank will read; nothing is unpickled before all are sound."""
    return "; ".join(verify(folder, manifest, files_to_read(manifest, mesh)))


def files_to_read(manifest: Manifest, mesh: ParallelMesh) -> list[str]:
    """It returns what a rank reads: its own files, those of its stage's first replica, and the first part of what has
    several."""
    first = mesh.pipeline.rank * mesh.tensor.size * mesh.data.size
    return files_of(manifest, {0, mesh.rank, *range(first, first + mesh.tensor.size)})


def files_of(manifest: Manifest, writers: set[int]) -> list[str]:
    """It returns the files that these ranks have written."""
    return [name for name, record in manifest.files.items() if record.rank in writers]


def unsafe_files(folder: Path, names: list[str]) -> str:
    """It names files that hold anything but tensors and plain values. Tensors are mapped, not read."""
    problems = []
    for name in names:
        try:
            load_plain(folder / name)
        except Exception as error:  # whatever a foreign file provokes, all ranks must come to the same end
            problems.append(f"{folder / name}: refused ({str(error).splitlines()[0]})")
    return "; ".join(problems)


def load_files(
    engine: TrainEngine, folder: Path, tag: Tag, manifest: Manifest
) -> tuple[Restored | None, str]:
    """It loads a checkpoint whose files are sound, all ranks together, and also returns what is wrong with the
    outcome."""
    rank = engine.mesh.rank
    engine.load(folder.parent, folder.name)
    try:
        with parsed_as(CheckpointError, folder / rank_file(rank)):
            own = torch.load(folder / rank_file(rank), map_location="cpu", weights_only=True)
            engine.load_extra_state(own["engine"])
            restored = Restored(
                tag=tag,
                state=manifest.state,
                data=json.loads(own["data"]),
                watchdog=json.loads(own.get("watchdog", "{}")),
                random=own["random"],
                run_id=manifest.run_id,
                proof=proof_of(manifest.checksums) if manifest.checksums else "",
            )
    except (OSError, CheckpointError) as error:  # on this rank alone, perhaps
        return None, str(error)
    if manifest.checksums and engine.checksum() != manifest.checksums[rank]:
        return restored, f"{folder}: weights or optimizer on rank {rank} are not those that were saved"
    return restored, ""


def rank_file(rank: int) -> str:
    """It names the file of what is in none of DeepSpeed's: data position, watchdog, random state, extra state of the
    engine."""
    return f"rank_{rank:05d}.pt"
