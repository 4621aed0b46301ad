"""The loop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil
import torch

from data_pipeline.errors import DataError
from data_pipeline.reading.stream import BatchStream, ValidationSet
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.engine import BatchesMissing, TrainEngine
from pretrain.errors import CheckpointError, Preempted, RanksDisagree, TrainingDiverged
from pretrain.evaluation.validate import validate
from pretrain.fault_injection.faults import Fault
from pretrain.ledger.ledger import RunLedger
from pretrain.metrics.logger import MetricsLogger
from pretrain.optim.schedule import learning_rate
from pretrain.recovery.candidates import RETRY_STEPS, CheckpointManager
from pretrain.recovery.crash_report import CrashReport, write_crash_report
from pretrain.recovery.rollback import RollbackExecutor
from pretrain.runtime.agreement import guarded, raise_first
from pretrain.runtime.heartbeat import Heartbeat, Phase
from pretrain.runtime.signals import StopSignals
from pretrain.step import Action, StepReport, TrainState, Verdict
from pretrain.watchdog.watchdog import Watchdog

RunJudge = Callable[[StepReport, TrainState], Verdict]
"""Judges a step, given the state before it; must be pure, so that all ranks come to the same verdict."""


@dataclass(frozen=True)
class Collaborators:
    """Everything that a trainer works with; put together in `pretrain.__main__`."""

    mesh: ParallelMesh
    engine: TrainEngine
    batches: BatchStream
    validation: ValidationSet
    checkpoints: CheckpointManager
    journal: MetricsLogger
    watchdog: Watchdog
    ledger: RunLedger
    signals: StopSignals
    heartbeat: Heartbeat
    fault: Fault
    hosts: Sequence[str]
    """Names of the machines, by rank."""
    judge: RunJudge | None = None
    """In place of the watchdog's."""


class Trainer:
    """Trains until the last step, a request to stop, or the end of hope."""

    def __init__(self, config: RunConfig, collaborators: Collaborators) -> None:
        self.config = config
        self.mesh = collaborators.mesh
        self.engine = collaborators.engine
        self.batches = collaborators.batches
        self.validation = collaborators.validation
        self.checkpoints = collaborators.checkpoints
        self.journal = collaborators.journal
        self.watchdog = collaborators.watchdog
        self.ledger = collaborators.ledger
        self.signals = collaborators.signals
        self.heartbeat = collaborators.heartbeat
        self.fault = collaborators.fault
        self.judge = collaborators.judge
        self.rescue = RollbackExecutor(config, collaborators)
        self._steps = guarded(self.batches)
        self.validation_loss: float | None = None
        """The last validation loss that this process has taken."""
        self.state = TrainState()
        """Where the run stands, for the last words of one that ends early."""
        self._lost = ""
        """What to say of a stop if the last save failed; empty if none did."""
        self._forgetful = False
        """Host memory had no room for the last candidate, and that was told."""
        self._saved = 0
        """The last step that a checkpoint was taken of, or tried."""
        self._judged: tuple[StepReport, Verdict] | None = None
        """The last step."""

    def take_up(self, state: TrainState) -> TrainState:
        """What is to be done before the first step of a process: a rollback that a crash has cut short."""
        if self.ledger.history.pending is not None:
            state = self.rescue.complete(state)
        self.batches.skip(self.ledger.history.skips)
        self.checkpoints.await_certificates(state.step)
        return state

    def run(self, state: TrainState) -> TrainState:
        """Train from `state`, which is that of the newest checkpoint if there is one, to the last step.

        Raises:
            Preempted: a signal asked to stop, and a checkpoint is sealed.
            TrainingDiverged: the judge gave up.
            DataError: data is missing, or more samples are damaged than the budget allows.
            CheckpointError: the last checkpoint could not be saved.
        """
        self._saved = state.step
        self._remember(state)
        stopping = self._asked_to_stop()
        while not stopping and not self._complete(state):
            self.state = state
            try:
                state, stopping = self._next(state)
            except (DataError, TrainingDiverged) as error:  # of all ranks alike
                if self.checkpoints.writing():
                    self._seal(state)
                if isinstance(error, TrainingDiverged):
                    raise TrainingDiverged(f"{error}{self._leave_evidence(str(error))}") from None
                raise
        self.state = state
        if stopping:
            self._leave(state)
        self._look_after_checkpoints(state, at_once=True)
        return state

    def _next(self, state: TrainState) -> tuple[TrainState, bool]:
        """What comes next; also whether a rank was asked to stop."""
        if self._validation_due(state):
            return self._validate(state)
        if self._checkpoint_due(state):
            self._save(state)
            return state, False
        return self._advance(state)

    def _complete(self, state: TrainState) -> bool:
        due = self._validation_due(state) or self._checkpoint_due(state)
        return state.step >= self.config.run.steps and not due

    def _validation_due(self, state: TrainState) -> bool:
        return state.validated < state.step and self._at(state, self.config.evaluation.every_steps)

    def _checkpoint_due(self, state: TrainState) -> bool:
        again = bool(self._lost) and state.step >= self._saved + RETRY_STEPS
        return self._saved < state.step and (again or self._at(state, self.config.checkpoint.every_steps))

    def _at(self, state: TrainState, every: int) -> bool:
        """At a multiple of `every` steps, or at the last step."""
        return state.step % every == 0 or state.step == self.config.run.steps

    def _advance(self, state: TrainState) -> tuple[TrainState, bool]:
        """One optimizer step, or a return to an earlier one; also whether a rank was asked to stop."""
        started = time.perf_counter()
        self.heartbeat.beat(state.step, Phase.STEP, state.attempt)
        report, verdict = self._step(state)
        self._judged = (report, verdict)
        self.journal.record(report, verdict, self._measure(started))  # also the step that ends the run
        for tag, values in report.histograms.items():
            self.journal.histogram(report.step, tag, values)
        self.journal.curves(report.step, self.watchdog.curves)
        self.rescue.tell(report, verdict, state)
        if not report.unanimous:
            raise RanksDisagree(f"step {report.step}: ranks have decided differently; nothing of it is saved")
        if verdict.action is Action.HALT:
            raise TrainingDiverged(self.rescue.last_words(verdict))
        if verdict.action is Action.ROLLBACK:
            return self._roll_back(state, verdict), report.interrupted
        state = state.after(report, verdict)
        self._check_damage(state)
        # What is certified now makes room in memory for what is remembered.
        self._look_after_checkpoints(state)
        if self.checkpoints.remember_due(state.step):
            self._remember(state)
        return state, report.interrupted

    def _look_after_checkpoints(self, state: TrainState, *, at_once: bool = False) -> None:
        """Complete what a thread had some steps for, or no more; certify what has proven healthy."""
        due = None if at_once else state.step
        if self.checkpoints.writing(due):
            self._seal(state)
        problems = []
        if self.checkpoints.ripe(state):
            problems += self.checkpoints.prove(state)
        if provings := self.checkpoints.proven(due):
            self.heartbeat.beat(state.step, Phase.SAVING, state.attempt)
            problems += self.checkpoints.certify(state, provings)
        for problem in problems:
            self.journal.event(state.step, problem)

    def _roll_back(self, state: TrainState, verdict: Verdict) -> TrainState:
        """To an earlier step; what was restored from host memory is put on disk at once if nothing else is there."""
        self._look_after_checkpoints(state, at_once=True)
        self.heartbeat.beat(state.step, Phase.RESTORING, state.attempt)
        state = self.rescue.roll_back(state, verdict)
        on_disk = self.checkpoints.on_disk()
        self._saved = state.step if state.step in on_disk else state.step - 1
        if not on_disk:
            self._save(state)
            self._look_after_checkpoints(state, at_once=True)
        return state

    def _remember(self, state: TrainState) -> None:
        problem = self.checkpoints.remember(state, self.batches.state())
        if problem and not self._forgetful:
            self.journal.event(state.step, problem)
        self._forgetful = bool(problem)

    def _step(self, state: TrainState) -> tuple[StepReport, Verdict]:
        batches, problem = next(self._steps)
        self.fault.before_step(self.engine, state.attempt + 1)
        try:
            report, verdict = self.engine.step(
                batches,
                judge=lambda report: self._judge(report, state),
                step=state.step + 1,
                learning_rate=self._learning_rate(state.updates),
                interrupted=self.signals.received is not None,
                dense=self.watchdog.suspicious,
                digest=self.watchdog.digest,
            )
        except BatchesMissing:
            raise_first(self.mesh, problem)
            raise
        if report.damaged:
            self._name_damaged(report.step, [name for batch in batches for name in batch.damaged])
        return report, verdict

    def _judge(self, report: StepReport, state: TrainState) -> Verdict:
        if self.judge is not None:
            return self.judge(report, state)
        verdict = self.watchdog.judge(report, state, self.ledger.history, self.batches.draws())
        # Which of the ranks is right nobody knows: no update, and the end.
        return verdict if report.unanimous else Verdict(Action.HALT, "ranks have decided differently")

    def _learning_rate(self, updates: int) -> float:
        """Of the next update: the schedule's, lowered where a rollback has asked for it."""
        peak, total = self.config.optimizer.learning_rate, self.config.run.steps
        rate = learning_rate(updates, total, self.config.schedule, peak)
        return self.fault.learning_rate(updates, rate * self.ledger.history.learning_rate_factor(updates))

    def _name_damaged(self, step: int, names: Sequence[str]) -> None:
        """Tell of the damaged samples of all ranks, each once."""
        for name in sorted({name for found in self.mesh.gather(names) for name in found}):
            self.journal.event(step, f"damaged sample masked: {name}")

    def _measure(self, started: float) -> dict[str, float]:
        if self.mesh.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self.mesh.device)
        else:
            memory = psutil.Process().memory_info().rss
        return {
            "seconds": time.perf_counter() - started,
            "wait_seconds": self.batches.take_wait_seconds(),
            "memory_bytes": memory,
        }

    def _check_damage(self, state: TrainState) -> None:
        budget = self.config.data.damaged_sample_budget
        if state.damaged > budget:
            raise DataError(
                f"{state.damaged} damaged samples up to step {state.step}, more than "
                f"data.damaged_sample_budget = {budget} allows; they are named above: prepare the data again, "
                "or allow more"
            )

    def _validate(self, state: TrainState) -> tuple[TrainState, bool]:
        """The validation loss; also whether it was broken off because a rank was asked to stop."""
        self.heartbeat.beat(state.step, Phase.VALIDATING, state.attempt)
        result = validate(self.engine, self.validation, self._asked_to_stop)
        if result is None:
            return state, True
        self.validation_loss = result.loss
        self.journal.validation(state.step, result.loss, result.targets, result.seconds)
        return replace(state, validated=state.step), False

    def _asked_to_stop(self) -> bool:
        return self.mesh.agree_any(self.signals.received is not None)

    def _save(self, state: TrainState) -> None:
        """Begin a checkpoint; some steps later it is sealed."""
        if self.checkpoints.writing():
            self._seal(state)
        self.heartbeat.beat(state.step, Phase.SAVING, state.attempt)
        problem = self.checkpoints.write(state, self.batches.state())
        self._saved, self._lost = state.step, ""
        if problem:
            self._lose(state.step, problem)

    def _seal(self, state: TrainState) -> None:
        """Complete the checkpoint that was begun."""
        self.heartbeat.beat(state.step, Phase.SAVING, state.attempt)
        saved, begun = self.checkpoints.seal()
        if saved.tag is None:
            self._lose(begun.step, saved.problem)
        else:
            self.journal.event(state.step, f"checkpoint {saved.tag} saved")

    def _lose(self, step: int, problem: str) -> None:
        """A save that fails costs this checkpoint, not the run, unless there is no later one to come."""
        if step == self.config.run.steps:
            raise CheckpointError(f"the last checkpoint could not be saved: {problem}")
        self._lost = f", from an older checkpoint: that of step {step} could not be saved ({problem})"
        self.journal.event(step, f"checkpoint not saved: {problem}")

    def _leave_evidence(self, reason: str) -> str:
        """For those who want to know why the run ended; returns what to say of it."""
        if self._judged is None:
            return ""
        report, verdict = self._judged
        self.heartbeat.beat(self.state.step, Phase.SAVING, self.state.attempt)
        draws = self.watchdog.draws_since(verdict.onset or report.step) or (self.batches.draws(),)
        scene = CrashReport(reason, report, verdict, self.state, self.ledger.history, draws)
        folder, problem = write_crash_report(scene, self.config, self.mesh, self.engine, self.batches)
        return f"; evidence is in {folder}" if folder else f"; no evidence could be written: {problem}"

    def _leave(self, state: TrainState) -> None:
        """End the run early, with a checkpoint of where it stands."""
        if self._saved < state.step:
            self._save(state)
        if self.checkpoints.writing():
            self._seal(state)
        raise Preempted(
            f"stopped by a signal at step {state.step}; the same command resumes the run{self._lost}"
        )
