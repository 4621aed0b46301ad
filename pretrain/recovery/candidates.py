"""What a run can go back to: candidates on disk and in host memory, from taking to certifying to restoring."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pretrain.checkpoint.checkpoint import Checkpointer, PendingSave, Saved, Verification
from pretrain.checkpoint.restored import Restored
from pretrain.checkpoint.snapshots import Snapshot, SnapshotStore
from pretrain.checkpoint.tag import Tag
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, Record
from pretrain.step import TrainState
from pretrain.watchdog.rollback_plan import RollbackPlan
from pretrain.watchdog.watchdog import Watchdog

RETRY_STEPS = 64
"""Steps after which what the disk had no room for is tried again."""
BACKGROUND_STEPS = 8
"""Steps that a thread has for what takes long on disk; then the run waits for it. Not "until it is done": what a run
does must not depend on how fast a disk was."""


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


@dataclass(frozen=True)
class Proving:
    """A candidate that has proven healthy and whose bytes are being read again."""

    examination: Verification
    step: int
    """At which that was begun."""


class CheckpointManager:
    """Takes, certifies and restores candidates. All ranks make the same calls."""

    def __init__(
        self,
        config: RunConfig,
        engine: TrainEngine,
        checkpointer: Checkpointer,
        watchdog: Watchdog,
        ledger: RunLedger,
    ) -> None:
        settings = config.watchdog
        self._every = settings.memory_every_steps
        self._watched = settings.enabled
        self._last_step = config.run.steps
        self._engine = engine
        self._checkpointer = checkpointer
        self._watchdog = watchdog
        self._ledger = ledger
        keep = settings.memory_keep if settings.enabled else 0
        self._memory = SnapshotStore(keep, settings.horizon)
        self._candidates: dict[int, Tag | None] = {}
        """Step -> tag on disk, of what is neither certified nor given up; none: in host memory alone."""
        self._put_off: dict[int, int] = {}
        """Step of a candidate whose certificate could not be written -> the step at which it is tried again."""
        self._writing: PendingSave | None = None
        self._proving: list[Proving] = []

    def await_certificates(self, step: int) -> None:
        """Take up the candidates on disk that an earlier session has left, up to this step; also one whose
        certificate the ledger has not heard of."""
        history = self._ledger.history
        known = history.certified | history.refused
        for tag in self._checkpointer.sealed():
            if tag.step <= step and str(tag) not in known:
                self._candidates[tag.step] = tag

    def write(self, state: TrainState, data: dict[str, Any]) -> str:
        """Begin a candidate on disk, once the one before is complete; returns the problem, if there is one."""
        assert self._writing is None, "one at a time"
        begun = self._checkpointer.begin(self._engine, state, data, self._watchdog_state())
        if isinstance(begun, Saved):
            return begun.problem
        self._writing = begun
        return ""

    def writing(self, step: int | None = None) -> bool:
        """Whether a candidate is begun and not complete; with `step` whether it must be by then."""
        begun = self._writing
        return begun is not None and (step is None or step >= begun.state.step + BACKGROUND_STEPS)

    def seal(self) -> tuple[Saved, TrainState]:
        """Complete the candidate that was begun; also the state that it is of."""
        begun, self._writing = self._writing, None
        assert begun is not None, "nothing was begun"
        saved = self._checkpointer.finish(begun)
        if saved.tag is not None:
            self._candidates[begun.state.step] = saved.tag
            self._ledger.append(record(Kind.SEALED, begun.state, tag=str(saved.tag)))
        return saved, begun.state

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
            if (proven(step, state.step) and state.step >= self._put_off.get(step, 0)) or (ended and tag)
        )

    def prove(self, state: TrainState) -> list[str]:
        """Give up the ripe candidates that have done harm; certify the others, on disk once they were read again.

        Returns what has kept candidates from being read.
        """
        problems = []
        for step in self.ripe(state):
            tag, deferred = self._candidates.pop(step), self._put_off.pop(step, None)
            if deferred and tag not in self._checkpointer.sealed():
                continue  # retention has not waited
            if self._watchdog.health.damaged(step):
                if tag is not None:
                    self._ledger.append(record(Kind.REFUSED, state, tag=str(tag)))
                continue
            self._memory.certify(step)
            if tag is None:
                self._ledger.append(record(Kind.CERTIFIED, state, tag=None, horizon=state.step - step))
                continue
            examination = self._checkpointer.start_verify(tag)
            if isinstance(examination, str):
                problems.append(self._later(tag, state, examination))
            else:
                self._proving.append(Proving(examination, state.step))
        return problems

    def _later(self, tag: Tag, state: TrainState, problem: str) -> str:
        """Nothing is wrong with the candidate itself: it is tried again. Returns what to say."""
        self._candidates[tag.step] = tag
        self._put_off[tag.step] = state.step + RETRY_STEPS
        return f"checkpoint {tag} could not be certified now: {problem}"

    def proven(self, step: int | None = None) -> tuple[Proving, ...]:
        """What is being read again; with `step` what must be read by then."""
        return tuple(one for one in self._proving if step is None or step >= one.step + BACKGROUND_STEPS)

    def certify(self, state: TrainState, provings: Iterable[Proving]) -> list[str]:
        """Certify what was read again and is sound; returns what has kept sound ones from it."""
        problems = []
        for one in provings:
            self._proving.remove(one)
            tag = one.examination.tag
            horizon = one.step - tag.step
            problem, damaged = self._checkpointer.finish_certify(one.examination, horizon, {})
            if problem and not damaged:
                problems.append(self._later(tag, state, problem))
            elif problem:
                self._ledger.append(record(Kind.QUARANTINED, state, tag=str(tag), reason=problem))
            else:
                self._ledger.append(record(Kind.CERTIFIED, state, tag=str(tag), horizon=horizon))
        return problems

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
            self._ledger.append(record(Kind.CONDEMNED, state, tag=str(tag), reason=reason))
        self._memory.drop(after_step=target_step)
        self._candidates = {step: tag for step, tag in self._candidates.items() if step <= target_step}
        self._put_off = {step: again for step, again in self._put_off.items() if step <= target_step}
        self._proving = [one for one in self._proving if one.examination.tag.step <= target_step]

    def restore(self, target: Target) -> tuple[Restored, str]:
        """Go back; the run as it was, and the tier that it came from. A damaged candidate is passed over."""
        if target.snapshot is not None:
            restored = self._memory.restore(self._engine, target.snapshot)
            if restored is not None:
                return restored, "memory"
            return self._checkpointer.load_preferred(self._engine, target.step), "disk"
        assert target.tag is not None
        return self._checkpointer.load(self._engine, target.tag), "disk"

    def on_disk(self) -> frozenset[int]:
        """Steps of the checkpoints that a new process could go on from."""
        return frozenset(tag.step for tag in self._checkpointer.sealed())

    def remember_due(self, step: int) -> bool:
        return self._watched and step % self._every == 0
