"""A run can go back to candidates, on disk and in host memory; this takes, certifies and restores them.

    save -> BACKGROUND_STEPS later: sealed -> healthy for a horizon: verified -> BACKGROUND_STEPS later: certified

A snapshot in host memory needs neither the disk nor to be read again, and is certified once it has proven healthy.
"""

from dataclasses import dataclass
from typing import Any

from data_pipeline.reading.batches import Batches
from pretrain.checkpoint.lifecycle import by_preference
from pretrain.checkpoint.loader import CheckpointLoader
from pretrain.checkpoint.restored import Restored
from pretrain.checkpoint.snapshots import Snapshot, SnapshotStore
from pretrain.checkpoint.tag import Tag
from pretrain.checkpoint.writer import CheckpointWriter, PendingSave, SaveFailed
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.errors import CheckpointError
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, record
from pretrain.metrics.logger import MetricsLogger
from pretrain.recovery.certification import BACKGROUND_STEPS, RETRY_STEPS, Certifier
from pretrain.runtime.heartbeat import Heartbeat, Phase
from pretrain.step import TrainState
from pretrain.watchdog.rollback_plan import RollbackPlan
from pretrain.watchdog.watchdog import Watchdog


@dataclass(frozen=True)
class Target:
    """It says where a rollback goes."""

    step: int
    tag: Tag | None
    """On disk; none: `snapshot`."""
    snapshot: Snapshot | None
    certified: bool


class CheckpointManager:
    """It takes candidates when they are due, has them sealed and certified, and goes back to them.

    All ranks make the same calls. A save that fails costs this checkpoint, not the run, unless there is no later one to
    come.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        engine: TrainEngine,
        batches: Batches,
        writer: CheckpointWriter,
        loader: CheckpointLoader,
        watchdog: Watchdog,
        ledger: RunLedger,
        heartbeat: Heartbeat,
        metrics: MetricsLogger,
    ) -> None:
        self._settings = config.checkpoint
        self._watch = config.watchdog
        self._ends_at = config.ends_at
        self._engine = engine
        self._batches = batches
        self._writer = writer
        self._loader = loader
        self._watchdog = watchdog
        self._ledger = ledger
        self._heartbeat = heartbeat
        self._metrics = metrics
        keep = self._watch.memory_keep if self._watch.enabled else 0
        self._snapshots = SnapshotStore(keep, self._watch.horizon)
        self._certifier = Certifier(config, writer, self._snapshots, watchdog, ledger)
        self._pending: PendingSave | None = None
        self._saved_step = 0
        """The last step that a checkpoint was taken of, or tried."""
        self._failure = ""
        """What to say of a stop if the last save has failed; empty if it has not."""
        self._memory_full = False
        """Host memory had no room for the last snapshot, and that was told."""

    # Taking

    def resume(self, state: TrainState) -> None:
        """It awaits certificates for what an earlier session has left, of those that `state` comes after."""
        self._certifier.resume(state.step)

    def start(self, state: TrainState) -> None:
        """It begins at a state that needs no checkpoint: it was loaded from one, or it is the initial weights."""
        self._saved_step = state.step
        self._take_snapshot(state)

    def save_due(self, state: TrainState) -> bool:
        """It says whether a checkpoint of this state is due: at its turn, at the lowest validation loss so far if that
        is to be kept, at the end, or some steps after a failure."""
        again = bool(self._failure) and state.step >= self._saved_step + RETRY_STEPS
        best = state.best_step == state.step
        turn = best or state.step % self._settings.every_steps == 0 or self._ends_at(state)
        return self._saved_step < state.step and (again or turn)

    def save(self, state: TrainState) -> None:
        """It begins a checkpoint; some steps later that is sealed.

        Raises:
            CheckpointError: it failed, and there is no later one to come.
        """
        self.seal(state)
        self._heartbeat.beat(state.step, Phase.SAVING, state.attempt)
        self._saved_step, self._failure = state.step, ""
        try:
            self._pending = self._writer.begin(
                self._engine, state, self._batches.state(), self._watchdog_state()
            )
        except SaveFailed as error:
            self._lose(state, error)

    def seal(self, state: TrainState) -> None:
        """It completes the checkpoint that was begun, if one was; the run stands at `state` by now.

        Raises:
            CheckpointError: it failed, and there is no later one to come.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self._heartbeat.beat(state.step, Phase.SAVING, state.attempt)
        try:
            tag = self._writer.finish(pending)
        except SaveFailed as error:
            self._lose(pending.state, error)
            return
        self._certifier.add_checkpoint(tag)
        self._ledger.append(record(Kind.SEALED, pending.state, tag=str(tag)))
        self._metrics.event(state.step, f"checkpoint {tag} saved")

    def look_after(self, state: TrainState) -> None:
        """It does what is due after a step: it completes what a thread has had its time for, certifies what has proven
        healthy, and takes a snapshot. What is certified now makes room in memory for it."""
        if self._pending is not None and state.step >= self._pending.state.step + BACKGROUND_STEPS:
            self.seal(state)
        self._certify(state, state.step)
        if self._watch.enabled and state.step % self._watch.memory_every_steps == 0:
            self._take_snapshot(state)

    def complete(self, state: TrainState) -> None:
        """It completes all that threads are about, however long that takes, and certifies what has proven healthy."""
        self.seal(state)
        self._certify(state, None)
        self._certifier.tell_doubt(state)

    def leave(self, state: TrainState) -> str:
        """It seals a checkpoint of where the run stands, as it ends early; returns what to say if that failed."""
        if self._saved_step < state.step:
            self.save(state)
        self.seal(state)
        return self._failure

    def _certify(self, state: TrainState, due_step: int | None) -> None:
        problems = self._certifier.start_verify(state)
        if due := self._certifier.certificates_due(due_step):
            self._heartbeat.beat(state.step, Phase.SAVING, state.attempt)
            problems += self._certifier.finish(state, due)
        for problem in problems:
            self._metrics.event(state.step, problem)

    def _take_snapshot(self, state: TrainState) -> None:
        problem = self._snapshots.take(self._engine, state, self._batches.state(), self._watchdog_state())
        if state.step in self._snapshots.steps:
            self._certifier.add_snapshot(state.step)
        if problem and not self._memory_full:
            self._metrics.event(state.step, problem)
        self._memory_full = bool(problem)

    def _lose(self, state: TrainState, error: SaveFailed) -> None:
        if self._ends_at(state):
            raise CheckpointError(f"the last checkpoint could not be saved: {error}") from None
        self._failure = f", from an older checkpoint: that of step {state.step} could not be saved ({error})"
        self._metrics.event(state.step, f"checkpoint not saved: {error}")

    def _watchdog_state(self) -> dict[str, Any]:
        """It returns the watchdog's state; one that was switched off has seen none of the last steps, so it has none
        and begins anew when it is on again."""
        return self._watchdog.state_dict() if self._watch.enabled else {}

    # Going back

    def choose(self, plan: RollbackPlan) -> Target | None:
        """It returns the newest certified candidate that is old enough; where none is, the oldest from before the
        onset: a run that has been there before goes on from it at a lower learning rate."""
        found = self._choose(plan.limit_step, oldest=plan.oldest)
        return found or self._choose(plan.draft.onset - 1, oldest=True)

    def _choose(self, limit_step: int, *, oldest: bool) -> Target | None:
        """It returns a certified one if there is one; from memory where the disk has none that is better."""
        found: list[Target] = []
        if snapshot := self._snapshots.choose(limit_step, oldest=oldest):
            found.append(Target(snapshot.step, None, snapshot, snapshot.certified))
        on_disk = self._loader.folder.candidates()
        for tag in on_disk.preferred(limit_step, oldest=oldest)[:1]:
            found.append(Target(tag.step, tag, None, tag in on_disk.certified))
        best = by_preference(found, lambda one: one.certified, limit_step, oldest=oldest)
        return best[0] if best else None

    def condemn(self, target_step: int, reason: str, state: TrainState) -> None:
        """It sees to it that nothing later than the target of a rollback is gone back to, or resumed from."""
        for tag in self._loader.folder.condemn(target_step, reason):
            self._ledger.append(record(Kind.CONDEMNED, state, tag=str(tag), reason=reason))
        self._snapshots.drop(after_step=target_step)
        self._certifier.drop(after_step=target_step)

    def restore(self, target: Target) -> tuple[Restored, str]:
        """It goes back, past candidates that are damaged; returns the run as it was, and the tier that it came from."""
        if target.snapshot is not None:
            restored = self._snapshots.restore(self._engine, target.snapshot)
            if restored is not None:
                return restored, "memory"
            return self._loader.load_preferred(self._engine, target.step), "disk"
        assert target.tag is not None
        return self._loader.load(self._engine, target.tag), "disk"

    def go_on_from(self, state: TrainState) -> None:
        """It goes on after a rollback to `state`; if a new process would find nothing on disk to go on from, that is
        saved at once."""
        on_disk = {tag.step for tag in self._loader.folder.sealed()}
        self._saved_step = state.step if state.step in on_disk else state.step - 1
        if not on_disk:
            self.save(state)
            self.complete(state)
