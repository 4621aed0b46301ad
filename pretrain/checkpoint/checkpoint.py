"""Checkpointer: all ranks save, certify, condemn and load together, or not at all.

Every decision is taken from what all ranks have said, so that no rank goes on with a checkpoint that another one
could not read, and a failure on one rank is a failure of the save, not the end of the run.

What takes long and needs no other rank (writing files, forcing them to disk, hashing them, reading them again) a thread
does while the run goes on; the run comes back for the outcome.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parallel.mesh import ParallelMesh
from pretrain.checkpoint.certificate import Fact, certify
from pretrain.checkpoint.compatibility import Compatibility as Compatibility
from pretrain.checkpoint.lifecycle import (
    CONDEMNED,
    QUARANTINED,
    Candidates,
    candidates,
    condemn,
    create_folder,
    discard,
    quarantine,
    reinstate,
    retire,
    space_problem,
    update_latest,
)
from pretrain.checkpoint.manifest import Manifest, read_manifest, seal
from pretrain.checkpoint.rank_files import (
    RankFiles,
    damage,
    files_of,
    files_to_read,
    flush_files,
    load_files,
    read_again,
    unsafe_files,
    write_files,
)
from pretrain.checkpoint.restored import Restored
from pretrain.checkpoint.retention import Retention
from pretrain.checkpoint.tag import Tag
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.errors import CheckpointError
from pretrain.runtime.agreement import first_problem, from_first
from pretrain.step import TrainState

LIBRARIES = ("torch", "deepspeed", "megatron-core")


@dataclass(frozen=True)
class Saved:
    """Outcome of a save, the same on every rank."""

    tag: Tag | None
    """None: the save failed and left nothing."""
    problem: str = ""


@dataclass(frozen=True)
class PendingSave:
    """A checkpoint whose content is safe from the steps to come, and that this rank's thread looks after."""

    tag: Tag
    state: TrainState
    share: Future[RankFiles]


@dataclass(frozen=True)
class Verification:
    """A checkpoint whose bytes on disk this rank's thread reads again."""

    tag: Tag
    problem: Future[str]


class Checkpointer:
    """Seals, certifies, condemns and restores checkpoints in `folder`.

    With the watchdog, `latest` is the newest certified checkpoint, and retention keeps what a rollback may go back to;
    without it, `latest` is the newest sealed one.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        mesh: ParallelMesh,
        identity: Compatibility,
        report: Callable[[str], None],
    ) -> None:
        """`report` is told, on every rank alike, what was set aside and why."""
        self.folder = folder
        self._watched = config.watchdog.enabled
        self._in_background = config.checkpoint.background
        self._retention = Retention(
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
            certified=self._watched,
        )
        self._mesh = mesh
        self._identity = identity
        self._report = report
        self._size = 0
        self._versions = {name: version(name) for name in LIBRARIES}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="examination")
        """Of its own: a checkpoint that is begun must not wait until an older one is read again."""

    # Saving

    def save(
        self,
        engine: TrainEngine,
        state: TrainState,
        data: Mapping[str, Any],
        watchdog: Mapping[str, Any] | None = None,
    ) -> Saved:
        """Write and seal a checkpoint; on failure remove it and say why. Its bytes are read again when it is certified.

        `data` and `watchdog`, the states of the data stream and of the watchdog, are kept as JSON.
        """
        begun = self.begin(engine, state, data, watchdog)
        return self.finish(begun) if isinstance(begun, PendingSave) else begun

    def begin(
        self,
        engine: TrainEngine,
        state: TrainState,
        data: Mapping[str, Any],
        watchdog: Mapping[str, Any] | None = None,
    ) -> PendingSave | Saved:
        """Write a checkpoint, or copy what it is to hold, for `finish` to seal. Training may go on in between; no other
        save may.

        A Saved, on every rank, says why that failed.
        """
        tag, problem = from_first(self._mesh, lambda: create_folder(self.folder, state.step))
        if tag is None:
            return Saved(None, problem)
        if problem := first_problem(self._mesh, self._space_problem()):
            return self._discarded(tag, problem)
        written = write_files(
            engine, self.folder / str(tag), data, watchdog or {}, self._thread, deferred=self._in_background
        )
        if problem := first_problem(self._mesh, written.problem):
            return self._discarded(tag, problem)
        return PendingSave(tag, state, self._thread.submit(flush_files, written))

    def finish(self, writing: PendingSave) -> Saved:
        """Seal what `begin` has written, once all ranks have it on disk."""
        shares = self._mesh.gather(writing.share.result())
        problem = next((share.problem for share in shares if share.problem), "")
        if not problem:
            manifest = self._manifest(writing.tag, writing.state, shares)
            self._size = manifest.total_bytes
            _, problem = from_first(self._mesh, lambda: self._seal(writing.tag, manifest))
        if problem:
            return self._discarded(writing.tag, problem)
        self._retire()
        return Saved(writing.tag)

    def _discarded(self, tag: Tag, problem: str) -> Saved:
        from_first(self._mesh, lambda: discard(self.folder, [tag]))
        return Saved(None, problem)

    def _space_problem(self) -> str:
        """Each rank looks, since folders of one name may lie on different disks of several hosts."""
        return space_problem(self.folder, self._size) or ""

    def _manifest(self, tag: Tag, state: TrainState, shares: list[RankFiles]) -> Manifest:
        return Manifest(
            tag=str(tag),
            layout=self._identity.layout,
            config_digest=self._identity.architecture,
            data_fingerprint=self._identity.data_fingerprint,
            state=state,
            files={name: record for share in shares for name, record in share.files.items()},
            versions=self._versions,
            checksums=tuple(share.checksum for share in shares),
        )

    def _seal(self, tag: Tag, manifest: Manifest) -> None:
        seal(self.folder / str(tag), manifest)
        update_latest(self.folder, certified=self._watched)

    def _retire(self) -> None:
        """A folder that cannot be deleted now is deleted next time: what has been saved is safe."""
        from_first(self._mesh, lambda: retire(self.folder, self._retention))

    # Certifying and condemning

    def certify(self, tag: Tag, horizon: int, facts: Mapping[str, Fact]) -> str:
        """Certify a checkpoint after `horizon` healthy steps, if its bytes are still right on disk.

        Each rank reads the files again that it wrote. Returns why it was not certified, or an empty string; a damaged
        checkpoint is set aside. To certify twice does no harm.
        """
        examination = self.start_verify(tag)
        if isinstance(examination, str):
            return examination
        problem, _ = self.finish_certify(examination, horizon, facts)
        return problem

    def start_verify(self, tag: Tag) -> Verification | str:
        """Have each rank read the files again that it wrote; the problem, on all ranks, if there is no manifest."""
        folder = self.folder / str(tag)
        manifest, problem = from_first(self._mesh, lambda: read_manifest(folder))
        if manifest is None:
            return problem
        own = files_of(manifest, {self._mesh.rank})
        return Verification(tag, self._reader.submit(read_again, folder, manifest, own))

    def finish_certify(
        self, examination: Verification, horizon: int, facts: Mapping[str, Fact]
    ) -> tuple[str, bool]:
        """Certify what was examined, see `certify`; also whether the problem, if there is one, is with its bytes."""
        tag = examination.tag
        folder = self.folder / str(tag)
        if problem := first_problem(self._mesh, examination.problem.result()):
            self._set_aside(tag, problem)
            return problem, True
        step = tag.step + horizon
        _, problem = from_first(self._mesh, lambda: self._certify(folder, step, horizon, facts))
        if not problem:
            self._retire()
        return problem, False

    def _certify(self, folder: Path, step: int, horizon: int, facts: Mapping[str, Fact]) -> None:
        if (folder / CONDEMNED).exists():
            raise CheckpointError(f"{folder}: is condemned")
        certify(folder, step=step, horizon=horizon, facts=facts)
        update_latest(self.folder, certified=self._watched)

    def condemn(self, limit_step: int, reason: str) -> tuple[Tag, ...]:
        """Condemn all checkpoints of later steps; returns those that were not condemned before, newest first.

        Raises:
            CheckpointError: the marks could not be written.
        """
        return self._do(partial(self._condemn, lambda tag: tag.step > limit_step, reason))

    def _condemn(self, which: Callable[[Tag], bool], reason: str) -> tuple[Tag, ...]:
        tags = tuple(filter(which, candidates(self.folder).sealed))
        for tag in tags:
            condemn(self.folder, tag, reason)
        update_latest(self.folder, certified=self._watched)
        return tags

    def sealed(self) -> tuple[Tag, ...]:
        """The checkpoints that are not condemned, newest first."""
        found: Candidates = self._do(lambda: candidates(self.folder))
        return found.sealed

    # Loading

    def choose(self, limit_step: int, *, oldest: bool = False) -> tuple[Tag, bool] | None:
        """The newest (or oldest) certified checkpoint of at most this step; if none is certified, the newest (or
        oldest) sealed one. Condemned ones never are. Also whether it is certified."""
        found: Candidates = self._do(lambda: candidates(self.folder))
        tags = found.preferred(limit_step, oldest=oldest)
        return (tags[0], tags[0] in found.certified) if tags else None

    def load_newest(
        self, engine: TrainEngine, *, sealed: bool = False, afresh: bool = False
    ) -> Restored | None:
        """Load the newest sound checkpoint, certified or not.

        None if the run has never completed one, as far as can be seen here or the caller knows (`sealed`). Condemned
        ones are passed over; where there are none but those, and with `afresh`, None too: the run was taken back to
        something that was never on disk.

        Raises:
            CheckpointError: there were checkpoints, but none is sound, or the newest one does not fit this run.
        """
        found = self._look_around()
        if restored := self._load_first(engine, found.sealed):
            return restored
        damaged = self._do(lambda: any(self.folder.glob(f"*{QUARANTINED}")))
        if damaged or ((sealed or found.condemned) and not (afresh and found.condemned)):
            way_out = "repair one"
            if found.condemned:
                way_out += f", go on from a condemned one (--resume {found.condemned[0]} --force-condemned)"
            raise CheckpointError(
                f"{self.folder}: no usable checkpoint is left, and the run does not start from scratch by itself; "
                f"{way_out}, or choose another run.name to begin anew"
            )
        return None

    def load_preferred(self, engine: TrainEngine, limit_step: int) -> Restored:
        """Load what `choose` prefers into an engine that may have trained; if it is damaged, what comes next.

        Raises:
            CheckpointError: no sound one is left.
        """
        found = self._look_around()
        if restored := self._load_first(engine, found.preferred(limit_step)):
            return restored
        raise CheckpointError(f"{self.folder}: no usable checkpoint of at most step {limit_step} is left")

    def load(self, engine: TrainEngine, tag: Tag) -> Restored:
        """The same, but this checkpoint first of all.

        Raises:
            CheckpointError: no sound one is left.
        """
        return self._load_first(engine, [tag]) or self.load_preferred(engine, tag.step)

    def load_tag(self, engine: TrainEngine, name: str, *, allow_condemned: bool = False) -> Restored:
        """Load the checkpoint that a user asks for, and condemn those of the course that is left by that.

        Raises:
            CheckpointError: there is no such checkpoint, it is condemned and not allowed to be, it is damaged, or it
                does not fit this run.
        """
        found = self._look_around()
        tag = Tag.parse(name)
        if tag is None or tag not in (*found.sealed, *found.condemned):
            there = ", ".join(map(str, found.sealed)) or "none"
            raise CheckpointError(f"{self.folder}: no checkpoint {name}; there are: {there}")
        if tag in found.condemned and not allow_condemned:
            reason = self._do(lambda: (self.folder / name / CONDEMNED).read_text(encoding="utf-8").strip())
            raise CheckpointError(
                f"{self.folder / name}: is condemned ({reason}); --force-condemned loads it"
            )
        restored = self._load_first(engine, [tag])
        if restored is None:
            raise CheckpointError(f"{self.folder / name}: is damaged and was set aside; choose another one")
        self._do(lambda: self._take_up(tag))
        return restored

    def _take_up(self, tag: Tag) -> None:
        """Make a checkpoint the one that the run goes on from, also after a crash."""
        reinstate(self.folder, tag)
        reason = f"left behind: the run was taken back to {tag} by hand"
        self._condemn(lambda other: other > tag or other.step > tag.step, reason)

    def _look_around(self) -> Candidates:
        """What there is at a start, once what a crash may have left undone is done."""
        found: Candidates = self._do(lambda: candidates(self.folder))
        if found.sealed or found.condemned:
            self._do(lambda: update_latest(self.folder, certified=self._watched))
        for tag in found.torn:
            self._report(f"checkpoint {tag} was never completed and is ignored")
        return found

    def _load_first(self, engine: TrainEngine, tags: Iterable[Tag]) -> Restored | None:
        """Load the first sound one of these; damaged ones are set aside."""
        for tag in tags:
            folder = self.folder / str(tag)
            manifest, problem = from_first(self._mesh, partial(read_manifest, folder))
            if manifest is not None:
                if reason_against := self._identity.reason_against(manifest):
                    raise CheckpointError(f"{folder} {reason_against}")
                restored, problem = self._load_sound(engine, tag, manifest)
                if restored is not None:
                    return restored
            self._set_aside(tag, problem)
        return None

    def _load_sound(self, engine: TrainEngine, tag: Tag, manifest: Manifest) -> tuple[Restored | None, str]:
        folder = self.folder / str(tag)
        if problem := first_problem(self._mesh, damage(folder, manifest, self._mesh)):
            return None, problem
        if problem := first_problem(self._mesh, unsafe_files(folder, files_to_read(manifest, self._mesh))):
            return None, problem
        restored, problem = load_files(engine, folder, tag, manifest)
        # Ranks read for very different times; what comes next has the short timeout of the control group.
        if problem := first_problem(self._mesh, problem):
            return None, problem
        self._size = manifest.total_bytes
        return restored, ""

    def _set_aside(self, tag: Tag, problem: str) -> None:
        def act() -> None:
            quarantine(self.folder, tag, problem)
            update_latest(self.folder, certified=self._watched)

        from_first(self._mesh, act)
        self._report(f"checkpoint {tag} is damaged and was set aside: {problem}")

    def _do(self, action: Callable[[], Any]) -> Any:
        """Do it on rank 0; its result on every rank, or a CheckpointError."""
        result, problem = from_first(self._mesh, action)
        if problem:
            raise CheckpointError(problem)
        return result
