"""Going back: from a verdict to a run that stands at an earlier step and goes on from there."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Protocol

from data_pipeline.reading.batches import Batches
from pretrain.config.run import RunConfig
from pretrain.errors import TrainingDiverged
from pretrain.ledger.history import LearningRateEdit, Rollback
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, Record
from pretrain.metrics.logger import MetricsLogger
from pretrain.recovery.candidates import CheckpointManager, record
from pretrain.step import Action, StepReport, TrainState, Verdict
from pretrain.watchdog.policy import MEMORY_FAULTS
from pretrain.watchdog.watchdog import Watchdog


class Crew(Protocol):
    """Whom it takes."""

    @property
    def batches(self) -> Batches: ...
    @property
    def checkpoints(self) -> CheckpointManager: ...
    @property
    def journal(self) -> MetricsLogger: ...
    @property
    def watchdog(self) -> Watchdog: ...
    @property
    def ledger(self) -> RunLedger: ...
    @property
    def hosts(self) -> Sequence[str]: ...


class RollbackExecutor:
    """Tells the ledger what was found, and takes the run back when a verdict says so."""

    def __init__(self, config: RunConfig, crew: Crew) -> None:
        self._return_updates = config.watchdog.learning_rate_return
        self._batches = crew.batches
        self._checkpoints = crew.checkpoints
        self._journal = crew.journal
        self._watchdog = crew.watchdog
        self._ledger = crew.ledger
        self._hosts = crew.hosts
        self._told: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        """Signals of the alarms and suspicions that the ledger has last heard of."""
        self._odd_rank: float | None = None
        """Whose memory the ledger has last been told to suspect."""
        self._left_alone = False
        """Whether the step before had alarms that nothing is done about."""

    def tell(self, report: StepReport, verdict: Verdict, state: TrainState) -> None:
        """Write down what is new: alarms, suspicions, a veto. `state` is that before the step."""
        findings = self._watchdog.findings
        signals = frozenset(a.signal for a in findings.alarms), frozenset(a.signal for a in findings.suspects)
        before, self._told = self._told, signals

        def tell(kind: Kind, **fields: object) -> None:
            self._ledger.append(Record(kind, report.step, state.attempt + 1, state.lineage, fields))

        odd = report.measures.get("replicas_odd_rank", report.measures.get("tev_reach_rank"))
        if odd is not None and odd != self._odd_rank:
            self._odd_rank = odd
            tell(Kind.HOST_SUSPECT, rank=int(odd), host=self._hosts[int(odd)])
        if self._watchdog.switch:
            tell(Kind.REBASELINE, reason=self._watchdog.switch, declared=False)
        if findings.calibrated:
            tell(Kind.CALIBRATED, thresholds=findings.calibrated)
        if signals[0] - before[0] or (verdict.alarms and verdict.action is not Action.PROCEED):
            tell(Kind.ALARM, alarms=[asdict(alarm) for alarm in findings.alarms or verdict.alarms])
        if signals[1] - before[1] - before[0]:
            tell(Kind.SUSPECT, signals=sorted(signals[1]))
        left_alone = verdict.action is Action.PROCEED and bool(verdict.reason)
        if left_alone and not self._left_alone:
            tell(Kind.LEFT_ALONE, reason=verdict.reason)
        self._left_alone = left_alone
        if verdict.action is Action.VETO:
            tell(Kind.VETO, reason=verdict.reason, draws=list(self._batches.sample_range()))

    def roll_back(self, state: TrainState, verdict: Verdict) -> TrainState:
        """Return to a candidate from before the trouble; the state that the run goes on from.

        Raises:
            TrainingDiverged: there is no such candidate.
        """
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
        self._watchdog.take_up(restored.watchdog, restored.state.attempt, self._ledger.history)
        self._journal.rewind(state.attempt - state.step, state.lineage)
        self._conclude(rollback, state, tier, restored.proof, started)
        restored.restore_random_state()
        return state

    def last_words(self, verdict: Verdict) -> str:
        """Why the run ends; after faults of memory also where they were seen."""
        hosts = self._ledger.history.suspected_hosts
        faults = any(alarm.kind in MEMORY_FAULTS for alarm in verdict.alarms)
        return verdict.reason + (f"; seen on {', '.join(hosts)}" if faults and hosts else "")

    def complete(self, state: TrainState) -> TrainState:
        """After a crash between an intent and its deed: the run was taken up at `state`, not later than intended."""
        pending = self._ledger.history.pending
        assert pending is not None, "there is something to complete"
        rollback = replace(pending, target_step=state.step)
        self._ledger.append_before(rollback.intent(state.lineage))
        state = replace(state, attempt=self._ledger.history.attempt, lineage=state.lineage + 1)
        self._journal.rewind(state.attempt - state.step, state.lineage)
        self._conclude(rollback, state, "disk", "", time.perf_counter())
        return state

    def _conclude(self, rollback: Rollback, state: TrainState, tier: str, proof: str, started: float) -> None:
        """What the ledger has learned holds from here on: samples to leave out, a lower learning rate."""
        self._batches.skip(self._ledger.history.skips)
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
        self._told, self._odd_rank = (frozenset(), frozenset()), None
