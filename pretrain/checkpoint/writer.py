"""A checkpoint gets onto the disk here: all ranks save, verify and certify together, or not at all.

Every decision is taken from what all ranks have said, so that no rank goes on with a checkpoint that another one
could not write, and a failure on one rank is a failure of the save, not the end of the run.

What takes long and needs no other rank (writing files, forcing them to disk, hashing them, reading them again) a thread
does while the run goes on; the run comes back for the outcome.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from pretrain.backend.host_copy import HostCopies
from pretrain.checkpoint.certificate import certify
from pretrain.checkpoint.compatibility import Compatibility
from pretrain.checkpoint.folder import CheckpointFolder
from pretrain.checkpoint.lifecycle import CONDEMNED, create_folder, discard, retire, space_problem
from pretrain.checkpoint.manifest import LIBRARIES, Manifest, read_manifest, seal
from pretrain.checkpoint.rank_files import RankFiles, files_of, read_again
from pretrain.checkpoint.retention import Retention
from pretrain.checkpoint.tag import Tag
from pretrain.checkpoint.transfer import write_files
from pretrain.config.run import CheckpointConfig
from pretrain.engine.engine import TrainEngine
from pretrain.errors import CheckpointError
from pretrain.runtime.agreement import first_problem, from_all, from_first
from pretrain.step import TrainState


class SaveFailed(Exception):
    """A save failed, for all ranks, and has left nothing. The run goes on."""


class NotCertified(Exception):
    """A checkpoint could not be certified now, for all ranks. Nothing is wrong with the checkpoint itself."""


class Damaged(NotCertified):
    """The bytes of a checkpoint are not what they were. It was set aside."""


@dataclass(frozen=True)
class PendingSave:
    """The content of this checkpoint is safe from the steps to come, and this rank's thread looks after it."""

    tag: Tag
    state: TrainState
    files: Future[RankFiles]


@dataclass(frozen=True)
class Verification:
    """This rank's thread is reading the bytes of a checkpoint on disk again."""

    tag: Tag
    problem: Future[str]


class CheckpointWriter:
    """It seals and certifies checkpoints, and removes those that need not be kept. All ranks make the same calls."""

    def __init__(
        self,
        folder: CheckpointFolder,
        settings: CheckpointConfig,
        compatibility: Compatibility,
        companions: Mapping[str, bytes] = MappingProxyType({}),
    ) -> None:
        """`companions` are files that go into every checkpoint, so that its model can be used without the run."""
        self.folder = folder
        self._mesh = folder.mesh
        self._companions = companions
        self._copies = HostCopies() if settings.background else None
        self._retention = Retention(settings.keep_last, settings.keep_every, certified=folder.watched)
        self._compatibility = compatibility
        self._versions = {name: version(name) for name in LIBRARIES}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verification")
        """Of its own: a checkpoint that is begun must not wait until an older one is read again."""

    def begin(
        self,
        engine: TrainEngine,
        state: TrainState,
        data: Mapping[str, Any],
        watchdog: Mapping[str, Any],
    ) -> PendingSave:
        """It writes a checkpoint, or copies what it is to hold, for `finish` to seal. Training may go on in between; no
        other save may.

        `data` and `watchdog`, the states of the data stream and of the watchdog, are kept as JSON.

        Raises:
            SaveFailed: there is no room, or the disk refuses.
            ConfigurationError: the run folder is not the run's any more.
        """
        self.folder.check()
        tag, problem = from_first(self._mesh, lambda: create_folder(self.folder.path, state.step))
        if tag is None:
            raise SaveFailed(problem)
        # Each rank looks, since folders of one name may lie on different disks of several hosts.
        if problem := first_problem(self._mesh, space_problem(self.folder.path, self.folder.size) or ""):
            raise self._discarded(tag, problem)
        flush, problem = from_all(
            self._mesh,
            lambda: write_files(
                engine, self.folder.of(tag), data, watchdog, self._companions, self._thread, self._copies
            ),
        )
        if flush is None:
            raise self._discarded(tag, problem)
        return PendingSave(tag, state, self._thread.submit(flush))

    def finish(self, pending: PendingSave) -> Tag:
        """It seals what `begin` has written, once all ranks have it on disk. Its bytes are read again when it is
        certified.

        Raises:
            SaveFailed: a rank could not write.
            ConfigurationError: the run folder is not the run's any more.
        """
        tag = pending.tag
        ranks = self._mesh.gather(pending.files.result())
        self.folder.check()
        problem = next((files.problem for files in ranks if files.problem), "")
        if not problem:
            manifest = self._manifest(tag, pending.state, ranks)
            self.folder.size = manifest.total_bytes
            _, problem = from_first(self._mesh, lambda: self._seal(tag, manifest))
        if problem:
            raise self._discarded(tag, problem)
        self._retire()
        return tag

    def start_verify(self, tag: Tag) -> Verification:
        """It has each rank read the files again that it wrote.

        Raises:
            NotCertified: there is no manifest.
        """
        folder = self.folder.of(tag)
        manifest, problem = from_first(self._mesh, lambda: read_manifest(folder))
        if manifest is None:
            raise NotCertified(problem)
        own = files_of(manifest, self._mesh.rank)
        return Verification(tag, self._reader.submit(read_again, folder, manifest, own))

    def finish_certify(self, verification: Verification, horizon: int) -> None:
        """It certifies a checkpoint after `horizon` healthy steps, if its bytes are still right. To certify twice does
        no harm.

        Raises:
            Damaged: they are not.
            NotCertified: the certificate could not be written, or the checkpoint is condemned.
            ConfigurationError: the run folder is not the run's any more.
        """
        tag = verification.tag
        problem = first_problem(self._mesh, verification.problem.result())
        self.folder.check()
        if problem:
            self.folder.set_aside(tag, problem)
            raise Damaged(problem)
        _, problem = from_first(self._mesh, lambda: self._certify(tag, horizon))
        if problem:
            raise NotCertified(problem)
        self._retire()

    def _discarded(self, tag: Tag, problem: str) -> SaveFailed:
        from_first(self._mesh, lambda: discard(self.folder.path, [tag]))
        return SaveFailed(problem)

    def _manifest(self, tag: Tag, state: TrainState, ranks: Sequence[RankFiles]) -> Manifest:
        return Manifest(
            tag=str(tag),
            layout=self._compatibility.layout,
            config_digest=self._compatibility.architecture,
            data_fingerprint=self._compatibility.data_fingerprint,
            optimizer=self._compatibility.optimizer,
            run_id=self.folder.run_id,
            state=state,
            files={name: record for own in ranks for name, record in own.files.items()},
            tensors=self._compatibility.tensors,
            versions=self._versions,
            checksums=tuple(own.checksum for own in ranks),
        )

    def _seal(self, tag: Tag, manifest: Manifest) -> None:
        seal(self.folder.of(tag), manifest)
        self.folder.update_latest()

    def _certify(self, tag: Tag, horizon: int) -> None:
        folder = self.folder.of(tag)
        if (folder / CONDEMNED).exists():
            raise CheckpointError(f"{folder}: is condemned")
        certify(folder, step=tag.step + horizon, horizon=horizon)
        self.folder.update_latest()

    def _retire(self) -> None:
        """It deletes what need not be kept. What cannot be deleted now waits for the next time, since what was saved is
        safe."""
        from_first(self._mesh, lambda: retire(self.folder.path, self._retention))
