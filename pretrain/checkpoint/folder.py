"""All ranks see the folder of a run's checkpoints alike: rank 0 looks and acts there, and all learn the same."""

from collections.abc import Callable
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
    update_latest,
)
from pretrain.checkpoint.tag import Tag
from pretrain.errors import CheckpointError
from pretrain.runtime.agreement import from_first

Result = TypeVar("Result")


class CheckpointFolder:
    """This is the folder of a run's checkpoints on disk. All ranks make the same calls.

    With the watchdog, DeepSpeed's `latest` is the newest certified checkpoint; without it, the newest sealed one.
    """

    def __init__(
        self, path: Path, mesh: ParallelMesh, *, watched: bool, report: Callable[[str], None]
    ) -> None:
        """`report` is told, on every rank alike, what was set aside and why."""
        self.path = path
        self.mesh = mesh
        self.watched = watched
        self.report = report
        self.size = 0
        """Bytes of the last checkpoint that was sealed or loaded; the next one will need about as many."""

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
        """
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
