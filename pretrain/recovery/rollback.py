"""A rollback leads from a verdict to a run that stands at an earlier step and goes on from there."""

import time
from dataclasses import asdict, replace

from data_pipeline.reading.batches import Batches
from pretrain.errors import TrainingDiverged
from pretrain.ledger.history import LearningRateEdit, Rollback
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, record
from pretrain.metrics.logger import MetricsLogger
from pretrain.recovery.candidates import CheckpointManager
from pretrain.recovery.findings import FindingsLog
from pretrain.runtime.heartbeat import Heartbeat, Phase
from pretrain.step import TrainState, Verdict
from pretrain.watchdog.watchdog import Watchdog

COME_AGAIN = (
    "this skip is more of the data than can be left out for good: its samples come again in the next epoch"
)


class RollbackExecutor:
    """It takes the run back when a verdict says so. All ranks make the same calls."""

    def __init__(
        self,
        *,
        return_updates: int,
        batches: Batches,
        checkpoints: CheckpointManager,
        watchdog: Watchdog,
        ledger: RunLedger,
        findings: FindingsLog,
        heartbeat: Heartbeat,
        metrics: MetricsLogger,
    ) -> None:
        """Over `return_updates` updates a lowered learning rate returns to that of the schedule."""
        self._return_updates = return_updates
        self._batches = batches
        self._checkpoints = checkpoints
        self._watchdog = watchdog
        self._ledger = ledger
        self._findings = findings
        self._heartbeat = heartbeat
        self._metrics = metrics

    def roll_back(self, state: TrainState, verdict: Verdict) -> TrainState:
        """It returns to a candidate from before the trouble; the result is the state that the run goes on from.

        Raises:
            TrainingDiverged: there is no such candidate.
        """
        self._checkpoints.complete(state)
        self._heartbeat.beat(state.step, Phase.RESTORING, state.attempt)
        state = self._restore(state, verdict)
        self._checkpoints.go_on_from(state)
        return state

    def complete(self, state: TrainState) -> TrainState:
        """It completes a rollback after a crash between its intent and its deed: the run was resumed at `state`, not
        later than intended."""
        pending = self._ledger.history.pending
        assert pending is not None, "there is something to complete"
        rollback = replace(pending, target_step=state.step)
        self._ledger.append_before(rollback.intent(state.lineage))
        state = replace(state, attempt=self._ledger.history.attempt, lineage=state.lineage + 1)
        self._metrics.rewind(state.attempt - state.step, state.lineage)
        self._conclude(rollback, state, "disk", "", time.perf_counter())
        return state

    def _restore(self, state: TrainState, verdict: Verdict) -> TrainState:
        """It writes the intent into the ledger first, then does the deed."""
        started = time.perf_counter()
        plan = self._watchdog.plan(verdict)
        target = self._checkpoints.choose(plan)
        if target is None:
            raise TrainingDiverged(
                f"{verdict.reason}; nothing is left to go back to from before step {plan.limit_step + 1}"
            )
        rollback = plan.to(target.step, str(target.tag) if target.tag else None)
        self._ledger.append_before(rollback.intent(state.lineage))
        self._checkpoints.condemn(target.step, verdict.reason, state)
        restored, tier = self._checkpoints.restore(target)
        if restored.state.step < target.step:
            # The target was damaged: what lies in between belongs to what is left behind.
            self._checkpoints.condemn(restored.state.step, verdict.reason, state)
        state = replace(restored.state, attempt=state.attempt + 1, lineage=state.lineage + 1)
        self._batches.seek(restored.data)
        self._watchdog.load_state(restored.watchdog, restored.state.attempt, self._ledger.history)
        self._metrics.rewind(state.attempt - state.step, state.lineage)
        self._conclude(rollback, state, tier, restored.proof, started)
        restored.restore_random_state()
        return state

    def _conclude(self, rollback: Rollback, state: TrainState, tier: str, proof: str, started: float) -> None:
        """It puts what the ledger has learned in force from here on: samples to leave out, a lower learning rate."""
        if self._batches.skip(self._ledger.history.windows):
            self._metrics.event(state.step, COME_AGAIN)
        if rollback.learning_rate_factor != 1:
            edit = LearningRateEdit(
                update=state.updates,
                factor=rollback.learning_rate_factor,
                return_updates=self._return_updates,
                until=rollback.learning_rate_until,
            )
            self._ledger.append(record(Kind.LEARNING_RATE_EDIT, state, **asdict(edit)))
        seconds = time.perf_counter() - started
        self._ledger.append(record(Kind.ROLLBACK_DONE, state, seconds=seconds, tier=tier, proof=proof))
        self._findings.reset()
