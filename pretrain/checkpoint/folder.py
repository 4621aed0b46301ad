"""All ranks see the folder of a run's checkpoints alike: rank 0 looks and acts there, and all learn the same."""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TypeVar

from parallel.mesh import ParallelMesh
from pretrain.checkpoint.lifecycle import (
    Candidates,
    candidates,
    condemn,
    quarantine,
    reinstate,
    set_foreign_aside,
    update_latest,
)
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.tag import Tag
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.runtime.agreement import first_problem, from_first

Result = TypeVar("Result")


class CheckpointFolder:
    """This is the folder of a run's checkpoints on disk. All ranks make the same calls.

    With the watchdog, DeepSpeed's `latest` is the newest certified checkpoint; without it, the newest sealed one.
    """

    def __init__(
        self,
        path: Path,
        mesh: ParallelMesh,
        *,
        watched: bool,
        report: Callable[[str], None],
        problem: Callable[[], str] = lambda: "",
    ) -> None:
        """`report` is told, on every rank alike, what was set aside and why; `problem` says what speaks against
        writing there any more."""
        self.path = path
        self.mesh = mesh
        self.watched = watched
        self.report = report
        self._problem = problem
        self.run_id = ""
        """What the run is called in manifests, once it has begun."""
        self.size = 0
        """Bytes of the last checkpoint that was sealed or loaded; the next one will need about as many."""

    def check(self) -> None:
        """It raises ConfigurationError, on all ranks, once the folder is not the run's any more."""
        if problem := first_problem(self.mesh, self._problem()):
            raise ConfigurationError(problem)

    def of(self, tag: Tag) -> Path:
        """It returns the folder of one checkpoint."""
        return self.path / str(tag)

    def candidates(self) -> Candidates:
        """It returns what lies there."""
        return self.on_first(lambda: candidates(self.path))

    def sealed(self) -> tuple[Tag, ...]:
        """It returns the checkpoints that are not condemned, newest first."""
        return self.candidates().sealed

    def condemn(self, limit_step: int, reason: str) -> tuple[Tag, ...]:
        """It condemns all checkpoints of later steps, and returns those that were not condemned before, newest first.

        Raises:
            CheckpointError: the marks could not be written.
            ConfigurationError: the folder is not the run's any more.
        """
        self.check()
        return self.on_first(partial(self._condemn, lambda tag: tag.step > limit_step, reason))

    def reinstate(self, tag: Tag) -> None:
        """It makes a checkpoint the one that the run goes on from, also after a crash: what was taken after it is left
        behind.

        Raises:
            CheckpointError: the marks could not be written.
        """
        self.on_first(lambda: self._reinstate(tag))

    def set_aside(self, tag: Tag, problem: str) -> None:
        """It quarantines a damaged checkpoint and reports it."""
        from_first(self.mesh, lambda: self._quarantine(tag, problem))
        self.report(f"checkpoint {tag} is damaged and was set aside: {problem}")

    def set_foreign_aside(self, run_ids: Collection[str], wanted: str | None) -> None:
        """It takes checkpoints of other runs than these out of the way of this one, but for the one that is `wanted`.

        Raises:
            CheckpointError: there are no others.
        """
        for tag in self.on_first(lambda: set_foreign_aside(self.path, run_ids, wanted)):
            self.report(
                f"checkpoint {tag} belongs to another run and was set aside; --resume {tag} goes on from it"
            )

    def set_unsealed_aside(self, sealed: Collection[str]) -> None:
        """It quarantines what has lost its manifest since it was sealed, as these tags were: without one it would pass
        for a save that never ended, which is removed."""
        for tag in self.candidates().torn:
            if str(tag) in sealed:
                self.set_aside(tag, f"its {MANIFEST} is gone")

    def update_latest(self) -> None:
        """It points `latest` to where it belongs. Rank 0 calls this after each change, the others need not."""
        update_latest(self.path, certified=self.watched)

    def on_first(self, action: Callable[[], Result]) -> Result:
        """It runs the action on rank 0; every rank gets its result.

        Raises:
            CheckpointError: it failed; on all ranks.
        """
        result, problem = from_first(self.mesh, action)
        if problem:
            raise CheckpointError(problem)
        return result  # type: ignore[return-value]  # None only where the action's result is

    def _condemn(self, which: Callable[[Tag], bool], reason: str) -> tuple[Tag, ...]:
        tags = tuple(filter(which, candidates(self.path).sealed))
        for tag in tags:
            condemn(self.path, tag, reason)
        self.update_latest()
        return tags

    def _reinstate(self, tag: Tag) -> None:
        reinstate(self.path, tag)
        reason = f"left behind: the run was taken back to {tag} by hand"
        self._condemn(lambda other: other > tag or other.step > tag.step, reason)

    def _quarantine(self, tag: Tag, problem: str) -> None:
        quarantine(self.path, tag, problem)
        self.update_latest()
