"""What a run can go back to: candidates on disk and in host memory, from taking to certifying to restoring."""

from dataclasses import dataclass
from typing import Any

from pretrain.checkpoint import Checkpointer, Saved
from pretrain.config import RunConfig
from pretrain.engine import TrainEngine
from pretrain.memory_tier import MemoryTier, Snapshot
from pretrain.records import TrainState
from pretrain.restored import Restored
from pretrain.tags import Tag
from pretrain.watchdog.chronicle import Chronicle
from pretrain.watchdog.plan import RollbackPlan
from pretrain.watchdog.record import Kind, Record
from pretrain.watchdog.watchdog import Watchdog


def record(kind: Kind, state: TrainState, **fields: Any) -> Record:
    """A record about the run as it is after `state.step` steps."""
    return Record(kind, state.step, state.attempt, state.lineage, fields)


@dataclass(frozen=True)
class Target:
    """Where a rollback goes."""

    step: int
    tag: Tag | None
    """On disk; none: `snapshot`."""
    snapshot: Snapshot | None


class Safekeeping:
    """Takes, certifies and restores candidates. All ranks make the same calls."""

    def __init__(
        self,
        config: RunConfig,
        engine: TrainEngine,
        checkpointer: Checkpointer,
        watchdog: Watchdog,
        chronicle: Chronicle,
    ) -> None:
        settings = config.watchdog
        self._every = settings.memory_every_steps
        self._watched = settings.enabled
        self._last_step = config.run.steps
        self._engine = engine
        self._checkpointer = checkpointer
        self._watchdog = watchdog
        self._chronicle = chronicle
        keep = settings.memory_keep if settings.enabled else 0
        self._memory = MemoryTier(keep, settings.horizon)
        self._candidates: dict[int, Tag | None] = {}
        """Step -> tag on disk, of what is neither certified nor given up; none: in host memory alone."""

    def await_certificates(self, step: int) -> None:
        """Take up the candidates on disk that an earlier session has left, up to this step."""
        for tag in self._checkpointer.uncertified():
            if tag.step <= step:
                self._candidates[tag.step] = tag

    def save(self, state: TrainState, data: dict[str, Any]) -> Saved:
        """A candidate on disk."""
        saved = self._checkpointer.save(self._engine, state, data, self._watchdog.state_dict())
        if saved.tag is not None:
            self._candidates[state.step] = saved.tag
            self._chronicle.tell(record(Kind.SEALED, state, tag=str(saved.tag)))
        return saved

    def remember(self, state: TrainState, data: dict[str, Any]) -> str:
        """A candidate in host memory; returns the problem where there is no room."""
        problem = self._memory.take(self._engine, state, data, self._watchdog.state_dict())
        if state.step in self._memory.steps:
            self._candidates.setdefault(state.step, None)
        return problem

    def certify(self, state: TrainState) -> None:
        """Certify the candidates that have proven healthy; after the last step all that nothing speaks against."""
        if not self._watched:
            return
        health = self._watchdog.health
        ended = state.step == self._last_step and not self._watchdog.suspicious
        for step, tag in sorted(self._candidates.items()):
            if not (health.proven(step, state.step) or (ended and tag)):
                continue
            del self._candidates[step]
            if not health.damaged(step):
                self._certify(step, tag, state)

    def _certify(self, step: int, tag: Tag | None, state: TrainState) -> None:
        horizon = state.step - step
        self._memory.certify(step)
        if tag is not None and (problem := self._checkpointer.certify(tag, horizon, {})):
            self._chronicle.tell(record(Kind.QUARANTINED, state, tag=str(tag), reason=problem))
            return
        name = None if tag is None else str(tag)
        self._chronicle.tell(record(Kind.CERTIFIED, state, tag=name, horizon=horizon))

    def choose(self, plan: RollbackPlan) -> Target | None:
        """The newest certified candidate that is old enough; where none is, the oldest from before the onset: a run
        that has been there before goes on from it at a lower learning rate."""
        found = self._choose(plan.limit_step, oldest=plan.oldest)
        return found or self._choose(plan.draft.onset - 1, oldest=True)

    def _choose(self, limit_step: int, *, oldest: bool) -> Target | None:
        """From memory where that is no older than from disk."""
        tag = self._checkpointer.choose(limit_step, oldest=oldest)
        snapshot = self._memory.newest(limit_step)
        if tag is None and snapshot is None:
            return None
        certified = tag is not None and str(tag) in self._chronicle.recovery.certified
        on_disk = (certified, tag.step) if tag else (False, -1)
        in_memory = (snapshot.certified, snapshot.step) if snapshot else (False, -1)
        if snapshot is not None and (tag is None or (in_memory >= on_disk and not oldest)):
            return Target(snapshot.step, None, snapshot)
        assert tag is not None
        return Target(tag.step, tag, None)

    def condemn(self, target_step: int, reason: str, state: TrainState) -> None:
        """Nothing later than the target of a rollback is gone back to, or resumed from."""
        for tag in self._checkpointer.condemn(target_step, reason):
            self._chronicle.tell(record(Kind.CONDEMNED, state, tag=str(tag), reason=reason))
        self._memory.drop(after_step=target_step)
        self._candidates = {step: tag for step, tag in self._candidates.items() if step <= target_step}

    def restore(self, target: Target) -> tuple[Restored, str]:
        """Go back; the run as it was, and the tier that it came from. A damaged candidate is passed over."""
        if target.snapshot is not None:
            restored = self._memory.restore(self._engine, target.snapshot)
            if restored is not None:
                return restored, "memory"
            older = self._checkpointer.load_newest(self._engine, target.step)
            if older is None:
                raise RuntimeError("the snapshot in host memory is damaged, and there is no checkpoint")
            return older, "disk"
        assert target.tag is not None
        return self._checkpointer.load(self._engine, target.tag), "disk"

    def remember_due(self, step: int) -> bool:
        return self._watched and step % self._every == 0
