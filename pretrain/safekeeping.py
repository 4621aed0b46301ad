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
        """Take up the candidates on disk that an earlier session has left, up to this step; also one whose
        certificate the ledger has not heard of."""
        known = self._chronicle.recovery.certified
        for tag in self._checkpointer.sealed():
            if tag.step <= step and str(tag) not in known and not self._watchdog.health.refused(tag.step):
                self._candidates[tag.step] = tag

    def save(self, state: TrainState, data: dict[str, Any]) -> Saved:
        """A candidate on disk."""
        saved = self._checkpointer.save(self._engine, state, data, self._watchdog_state())
        if saved.tag is not None:
            self._candidates[state.step] = saved.tag
            self._chronicle.tell(record(Kind.SEALED, state, tag=str(saved.tag)))
        return saved

    def remember(self, state: TrainState, data: dict[str, Any]) -> str:
        """A candidate in host memory; returns the problem where there is no room."""
        problem = self._memory.take(self._engine, state, data, self._watchdog_state())
        if state.step in self._memory.steps:
            self._candidates.setdefault(state.step, None)
        return problem

    def _watchdog_state(self) -> dict[str, Any]:
        """A watchdog that was switched off has seen none of the last steps: when it is on again, it begins anew."""
        return self._watchdog.state_dict() if self._watched else {}

    def ripe(self, state: TrainState) -> tuple[int, ...]:
        """Steps of the candidates that have proven healthy; after the last step of all that nothing speaks against."""
        if not self._watched:
            return ()
        ended = state.step == self._last_step and not self._watchdog.suspicious
        proven = self._watchdog.health.proven
        return tuple(
            step
            for step, tag in sorted(self._candidates.items())
            if proven(step, state.step) or (ended and tag)
        )

    def certify(self, state: TrainState) -> None:
        """Certify the ripe candidates, or give them up. Reads what is on disk again, which may take long."""
        for step in self.ripe(state):
            tag = self._candidates.pop(step)
            if self._watchdog.health.damaged(step):
                self._watchdog.health.refuse(step)
            else:
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
        """A certified one if there is one; from memory where the disk has none that is better."""
        found: list[tuple[bool, Target]] = []
        if snapshot := self._memory.choose(limit_step, oldest=oldest):
            found.append((snapshot.certified, Target(snapshot.step, None, snapshot)))
        if on_disk := self._checkpointer.choose(limit_step, oldest=oldest):
            tag, certified = on_disk
            found.append((certified, Target(tag.step, tag, None)))
        sign = -1 if oldest else 1
        best = max(found, key=lambda one: (one[0], sign * one[1].step), default=None)  # the first of equals
        return best[1] if best else None

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
            return self._checkpointer.load_preferred(self._engine, target.step), "disk"
        assert target.tag is not None
        return self._checkpointer.load(self._engine, target.tag), "disk"

    @property
    def on_disk(self) -> bool:
        """Whether there is a checkpoint that a new process could go on from."""
        return bool(self._checkpointer.sealed())

    def remember_due(self, step: int) -> bool:
        return self._watched and step % self._every == 0
