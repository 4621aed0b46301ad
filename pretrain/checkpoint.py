"""Checkpointer: all ranks save, verify and load together, or not at all.

Every decision is taken from what all ranks have said, so that no rank goes on with a checkpoint that another one
could not read, and a failure on one rank is a failure of the save, not the end of the run.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from parallel.mesh import ParallelMesh
from pretrain.checkpoint_files import (
    candidates,
    create_folder,
    discard,
    publish_latest,
    quarantine,
    retire,
    space_problem,
)
from pretrain.config import RunConfig
from pretrain.deepspeed_runtime import load_plain
from pretrain.engine import TrainEngine
from pretrain.errors import CheckpointError
from pretrain.manifest import CheckpointLayout, FileRecord, Manifest, hash_files, read_manifest, seal, verify
from pretrain.random_state import capture_random_state, restore_random_state
from pretrain.records import TrainState
from pretrain.tags import Tag

LIBRARIES = ("torch", "deepspeed", "megatron-core")
FREE_TO_CHANGE: dict[str, Any] = {"dropout": True, "activation_checkpointing": True, "attention": {"dropout"}}
"""Fields of the model that a resumed run may change: they are not in the weights."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must agree with before it is loaded."""

    layout: CheckpointLayout
    architecture: str
    """Digest of the model's shape."""
    data_fingerprint: str

    @classmethod
    def of(cls, config: RunConfig, mesh: ParallelMesh, data_fingerprint: str) -> "Identity":
        model = config.model.model_dump(mode="json", exclude=FREE_TO_CHANGE)
        shape = json.dumps({**model, "sequence_length": config.data.sequence_length}, sort_keys=True)
        return cls(
            layout=CheckpointLayout(
                tensor=mesh.tensor.size,
                pipeline=mesh.pipeline.size,
                data=mesh.data.size,
                zero_stage=config.parallel.zero_stage,
                dtype=config.precision.dtype,
            ),
            architecture=hashlib.sha256(shape.encode()).hexdigest(),
            data_fingerprint=data_fingerprint,
        )


@dataclass(frozen=True)
class Saved:
    """Outcome of a save, the same on every rank."""

    tag: Tag | None
    """None: the save failed and left nothing."""
    problem: str = ""


@dataclass(frozen=True)
class Restored:
    """What a loaded checkpoint says, beside the weights and the optimizer that the engine has now."""

    tag: Tag
    state: TrainState
    data: dict[str, Any]
    """Position of the data stream."""
    random: dict[str, Any]
    """Random state of this rank."""

    def restore_random_state(self) -> None:
        """To be called last, when everything else is in place."""
        restore_random_state(self.random)


class Checkpointer:
    """Seals and restores checkpoints in `folder`."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        mesh: ParallelMesh,
        identity: Identity,
        report: Callable[[str], None],
    ) -> None:
        """`report` is told, on every rank alike, what was set aside and why."""
        self.folder = folder
        self._config = config.checkpoint
        self._mesh = mesh
        self._identity = identity
        self._report = report
        self._size = 0

    # Saving

    def save(self, engine: TrainEngine, state: TrainState, data: dict[str, Any]) -> Saved:
        """Write, verify and seal a checkpoint; on failure remove it and say why."""
        tag, problem = self._from_first_rank(lambda: create_folder(self.folder, state.step))
        if tag is None:
            return Saved(None, problem)
        files, problem = self._write(engine, tag, data)
        if not problem:
            manifest = self._manifest(tag, state, files)
            _, problem = self._from_first_rank(lambda: self._seal(tag, manifest))
        if problem:
            self._from_first_rank(lambda: discard(self.folder, [tag]))
            return Saved(None, problem)
        self._size = sum(record.size for record in files.values())
        # A folder that cannot be deleted now is deleted next time; the checkpoint is safe.
        self._from_first_rank(
            lambda: retire(self.folder, **self._config.model_dump(include={"keep_last", "keep_every"}))
        )
        return Saved(tag)

    def _write(
        self, engine: TrainEngine, tag: Tag, data: dict[str, Any]
    ) -> tuple[dict[str, FileRecord], str]:
        """All ranks write their shares; the files of all of them, or the first problem."""
        folder = self.folder / str(tag)
        problem, records = self._space_problem(), {}
        if lack := self._first_problem(problem):
            return {}, lack
        saved = engine.save(self.folder, str(tag))
        try:
            if saved.failure:
                raise saved.failure
            own = folder / rank_file(self._mesh.rank)
            state = {
                "data": json.dumps(data),
                "random": capture_random_state(),
                "engine": engine.extra_state(),
            }
            torch.save(state, own)
            names = [path.name for path in saved.paths] + [own.name]
            records = hash_files(folder, names, rank=self._mesh.rank)
        except (OSError, RuntimeError, CheckpointError) as error:
            problem = f"rank {self._mesh.rank} could not write to {folder}: {error}"
        answers = self._mesh.gather((problem, records))
        files = {name: record for _, share in answers for name, record in share.items()}
        return files, next((problem for problem, _ in answers if problem), "")

    def _space_problem(self) -> str:
        """Each rank looks, since folders of one name may lie on different disks of several hosts."""
        return space_problem(self.folder, self._size) or ""

    def _manifest(self, tag: Tag, state: TrainState, files: dict[str, FileRecord]) -> Manifest:
        return Manifest(
            tag=str(tag),
            layout=self._identity.layout,
            config_digest=self._identity.architecture,
            data_fingerprint=self._identity.data_fingerprint,
            state=state,
            files=files,
            versions={name: version(name) for name in LIBRARIES},
        )

    def _seal(self, tag: Tag, manifest: Manifest) -> None:
        seal(self.folder / str(tag), manifest)
        publish_latest(self.folder, tag)

    # Loading

    def load_newest(self, engine: TrainEngine) -> Restored | None:
        """Load the newest sound checkpoint; None if the run has never begun to save one.

        Raises:
            CheckpointError: there are checkpoints, but none that is sound, or the newest one does not fit this run.
        """
        found, problem = self._from_first_rank(lambda: candidates(self.folder))
        if found is None:
            raise CheckpointError(problem)
        for tag in found.torn:
            self._report(f"checkpoint {tag} was never completed and is ignored")
        for tag, manifest in self._sealed(found.sealed):
            self._refuse_misfit(tag, manifest)
            problem = self._verify(tag, manifest)
            if not problem:
                return self._load(engine, tag, manifest)
            self._set_aside(tag, problem)
        remains, _ = self._from_first_rank(lambda: any(self.folder.glob("step*")))
        if remains:
            raise CheckpointError(
                f"{self.folder}: no usable checkpoint is left, and the run does not start from scratch by itself; "
                "repair one, or choose another run.name to begin anew"
            )
        return None

    def _sealed(self, tags: tuple[Tag, ...]) -> Iterator[tuple[Tag, Manifest]]:
        """Manifests, newest first; unreadable ones are set aside."""
        for tag in tags:
            manifest, problem = self._from_first_rank(partial(read_manifest, self.folder / str(tag)))
            if manifest is None:
                self._set_aside(tag, problem)
            else:
                yield tag, manifest

    def _refuse_misfit(self, tag: Tag, manifest: Manifest) -> None:
        """A sound checkpoint of another run is not set aside: the mistake is in what is asked for."""
        ours = self._identity
        if manifest.layout != ours.layout:
            theirs = manifest.layout.model_dump()
            changed = [
                f"{key} {theirs[key]} -> {value}"
                for key, value in ours.layout.model_dump().items()
                if theirs[key] != value
            ]
            raise CheckpointError(
                f"{self.folder / str(tag)} was saved in another layout ({', '.join(changed)}); resume with the "
                "layout it was saved in: conversion between layouts is not supported yet"
            )
        if manifest.config_digest != ours.architecture:
            raise CheckpointError(
                f"{self.folder / str(tag)} holds another model; restore [model] and data.sequence_length as they "
                "were, or choose another run.name"
            )
        if manifest.data_fingerprint != ours.data_fingerprint:
            raise CheckpointError(
                f"{self.folder / str(tag)}: the data or its tokenizer are not those that the run was trained on, so "
                "its data position means nothing; restore data.sources, or choose another run.name"
            )

    def _verify(self, tag: Tag, manifest: Manifest) -> str:
        """What is wrong with the files that any rank will read; nothing is unpickled before all are sound."""
        folder, names = self.folder / str(tag), self._files_to_read(manifest)
        damage = self._first_problem("; ".join(verify(folder, manifest, names)))
        return damage or self._first_problem("; ".join(unsafe_files(folder, names)))

    def _files_to_read(self, manifest: Manifest) -> list[str]:
        """A rank reads its own files, those of its stage's first replica, and the first part of what has several."""
        tensor = self._mesh.tensor.size
        first = self._mesh.pipeline.rank * tensor * self._mesh.data.size
        writers = {0, self._mesh.rank, *range(first, first + tensor)}
        return [name for name, record in manifest.files.items() if record.rank in writers]

    def _load(self, engine: TrainEngine, tag: Tag, manifest: Manifest) -> Restored:
        engine.load(self.folder, str(tag))
        path = self.folder / str(tag) / rank_file(self._mesh.rank)
        own = torch.load(path, map_location="cpu", weights_only=True)
        engine.load_extra_state(own["engine"])
        self._size = manifest.total_bytes
        # Ranks read for very different times; what comes next has the short timeout of the control group.
        self._mesh.gather(None)
        return Restored(tag, manifest.state, json.loads(own["data"]), own["random"])

    def _set_aside(self, tag: Tag, problem: str) -> None:
        self._from_first_rank(lambda: quarantine(self.folder, tag, problem))
        self._report(f"checkpoint {tag} is damaged and was set aside: {problem}")

    # Agreement

    def _from_first_rank(self, action: Callable[[], Any]) -> tuple[Any, str]:
        """Do it on rank 0; its result, or None and the problem, on every rank."""
        answer: tuple[Any, str] = (None, "")
        if self._mesh.rank == 0:
            try:
                answer = (action(), "")
            except (OSError, CheckpointError) as error:
                answer = (None, str(error))
        first: tuple[Any, str] = self._mesh.gather(answer)[0]
        return first

    def _first_problem(self, problem: str) -> str:
        """The problem of the first rank that has one, on every rank."""
        return next((text for text in self._mesh.gather(problem) if text), "")


def rank_file(rank: int) -> str:
    """File of what is in none of DeepSpeed's: data position, random state of the rank, extra state of the engine."""
    return f"rank_{rank:05d}.pt"


def unsafe_files(folder: Path, names: list[str]) -> list[str]:
    """Files that hold anything but tensors and plain values. Tensors are mapped, not read."""
    problems = []
    for name in names:
        try:
            load_plain(folder / name)
        except Exception as error:  # whatever a foreign file provokes, all ranks must come to the same end
            problems.append(f"{folder / name}: refused ({str(error).splitlines()[0]})")
    return problems
