"""The training loop steps, records, rolls back or halts, validates and saves; the rooms know how each is done."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.errors import DataError
from data_pipeline.reading.batches import Batches
from data_pipeline.reading.stream import ValidationSet
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.engine.targets import BatchesMissing
from pretrain.errors import Preempted, RanksDisagree, TrainingDiverged
from pretrain.evaluation.examples import ExampleSet
from pretrain.evaluation.sharpness import SharpnessProbe
from pretrain.evaluation.validate import validate
from pretrain.fault_injection.fault import Fault
from pretrain.ledger.ledger import RunLedger
from pretrain.metrics.logger import MetricsLogger
from pretrain.metrics.profiler import Profiler
from pretrain.optim.schedule import learning_rate
from pretrain.recovery.candidates import CheckpointManager
from pretrain.recovery.crash_report import CrashReport, last_words, write_crash_report
from pretrain.recovery.findings import FindingsLog
from pretrain.recovery.rollback import RollbackExecutor
from pretrain.runtime.agreement import guarded, raise_first
from pretrain.runtime.device_memory import memory_in_use
from pretrain.runtime.heartbeat import Heartbeat, Phase
from pretrain.runtime.ranges import ranged
from pretrain.runtime.signals import StopSignals
from pretrain.step import Action, StepReport, TrainState, Verdict
from pretrain.watchdog.watchdog import Watchdog

RunJudge = Callable[[StepReport, TrainState], Verdict]
"""It judges a step, given the state before it; it must be pure, so that all ranks come to the same verdict."""


@dataclass(frozen=True)
class Collaborators:
    """The collaborators are everything that a trainer works with; `pretrain.run` puts them together."""

    mesh: ParallelMesh
    engine: TrainEngine
    batches: Batches
    validation: ValidationSet | None
    examples: ExampleSet | None
    checkpoints: CheckpointManager
    rollback: RollbackExecutor
    watchdog: Watchdog
    findings: FindingsLog
    ledger: RunLedger
    metrics: MetricsLogger
    profiler: Profiler
    signals: StopSignals
    heartbeat: Heartbeat
    fault: Fault
    judge: RunJudge | None
    """In place of the watchdog's."""


class Trainer:
    """A trainer takes steps until the last one, a request to stop, or an error or a verdict that ends the run."""

    def __init__(self, config: RunConfig, collaborators: Collaborators) -> None:
        self.config = config
        self.mesh = collaborators.mesh
        self.engine = collaborators.engine
        self.batches = collaborators.batches
        self.validation = collaborators.validation
        self.examples = collaborators.examples
        self.checkpoints = collaborators.checkpoints
        self.rollback = collaborators.rollback
        self.watchdog = collaborators.watchdog
        self.findings = collaborators.findings
        self.ledger = collaborators.ledger
        self.metrics = collaborators.metrics
        self.profiler = collaborators.profiler
        self.signals = collaborators.signals
        self.heartbeat = collaborators.heartbeat
        self.fault = collaborators.fault
        self.judge = collaborators.judge
        self.sharpness = SharpnessProbe(config.probes, self.engine.curvature, self.validation, self.mesh)
        self.state = TrainState()
        """The state between two steps at which the run stands; a run that ends early reports it."""
        self.validation_loss: float | None = None
        """The last validation loss that this process has taken."""
        self._guarded_batches = guarded(self.batches)
        self._last_step: tuple[StepReport, Verdict] | None = None

    def resume(self, state: TrainState) -> TrainState:
        """Prepare for the first step of this process, and complete a rollback that a crash has cut short."""
        if self.ledger.history.pending is not None:
            state = self.rollback.complete(state)
        self.batches.skip(self.ledger.history.windows)
        self.checkpoints.resume(state)
        return state

    def run(self, state: TrainState) -> TrainState:
        """Train from `state`, which is that of the newest checkpoint if there is one, to the last step.

        Raises:
            Preempted: a signal asked to stop, and a checkpoint is sealed.
            TrainingDiverged: the judge gave up.
            DataError: data is missing, or more samples are damaged than the budget allows.
            CheckpointError: the last checkpoint could not be saved.
        """
        self.state = state
        try:
            state = self._train(state)
        except DataError:  # of all ranks alike, as the other one
            self.checkpoints.seal(self.state)
            raise
        except TrainingDiverged as error:
            self.checkpoints.seal(self.state)
            raise TrainingDiverged(f"{error}{self._report_crash(str(error))}") from None
        self.checkpoints.complete(state)
        return state

    def _train(self, state: TrainState) -> TrainState:
        self.checkpoints.start(state)
        state, stopping = self._validate_and_save_when_due(state, self._asked_to_stop())
        while not self.config.ends_at(state) and not stopping:
            sharpness = self._look_at_sharpness(state)
            self.profiler.begin(state.step + 1)
            started = time.perf_counter()
            with ranged("step"):
                report, verdict = self._step(state)
            seconds = time.perf_counter() - started
            self._record(state, report, verdict, {**self._measurements(seconds), **sharpness})
            self.profiler.end(report.step)
            if not report.unanimous:
                raise RanksDisagree(
                    f"step {report.step}: ranks have decided differently; nothing of it is saved"
                )
            if verdict.action is Action.HALT:
                why = last_words(report, verdict, self.ledger.history, self.engine.layer_names)
                raise TrainingDiverged(why)
            if verdict.action is Action.ROLLBACK:
                state = self.rollback.roll_back(state, verdict)
            else:
                state = state.after(report, verdict)
                self._check_damage(state)
                self.checkpoints.look_after(state)
            state, stopping = self._validate_and_save_when_due(state, report.interrupted)
        if stopping:
            self._leave(state)
        return state

    def _validate_and_save_when_due(self, state: TrainState, stopping: bool) -> tuple[TrainState, bool]:
        """Validate and save where that is due, unless a rank was asked to stop; return also whether one was."""
        self.state = state
        every = self.config.evaluation.every_steps
        turn = state.step % every == 0 or self.config.ends_at(state)
        if self.validation is not None and not stopping and turn and state.validated < state.step:
            state, stopping = self._validate(state, self.validation)
            self.state = state
        if not stopping and self.checkpoints.save_due(state):
            self.checkpoints.save(state)
        return state, stopping

    def _look_at_sharpness(self, state: TrainState) -> dict[str, float]:
        """Return how sharp the place is that the next step begins in, where that is due; it may take many passes."""

        def alive() -> None:
            self.heartbeat.beat(state.step, Phase.VALIDATING, state.attempt)

        return self.sharpness.look(state.step + 1, alive)

    def _step(self, state: TrainState) -> tuple[StepReport, Verdict]:
        """Take one optimizer step; the update is applied where the verdict says so."""
        self.heartbeat.beat(state.step, Phase.STEP, state.attempt)
        with ranged("data"):
            batches, problem = next(self._guarded_batches)
        self.fault.before_step(self.engine, state.attempt + 1)
        try:
            report, verdict = self.engine.step(
                batches,
                judge=lambda report: self._judge(report, state),
                step=state.step + 1,
                learning_rate=self._learning_rate(state.updates),
                interrupted=self.signals.received is not None,
                full=self.watchdog.curious or state.vetoes_in_a_row > 0,
                digest=self.watchdog.digest,
            )
        except BatchesMissing:
            raise_first(self.mesh, problem)
            raise
        self._last_step = (report, verdict)
        if report.damaged:
            self._name_damaged(report.step, [name for batch in batches for name in batch.damaged])
        return report, verdict

    def _judge(self, report: StepReport, state: TrainState) -> Verdict:
        if self.judge is not None:
            return self.judge(report, state)
        verdict = self.watchdog.judge(report, state, self.ledger.history, self.batches.sample_range())
        # Which of the ranks is right nobody knows: no update, and the end.
        return verdict if report.unanimous else Verdict(Action.HALT, "ranks have decided differently")

    def _learning_rate(self, updates: int) -> float:
        """It returns the rate of the next update: the schedule's, lowered where a rollback has asked for it."""
        peak, total = self.config.optimizer.learning_rate, self.config.run.steps
        rate = learning_rate(updates, total, self.config.schedule, peak)
        return self.fault.learning_rate(updates, rate * self.ledger.history.learning_rate_factor(updates))

    def _record(
        self, state: TrainState, report: StepReport, verdict: Verdict, measurements: Mapping[str, float]
    ) -> None:
        """Record a step, also the one that ends the run; `state` is the state before it."""
        self.metrics.record(report, verdict, measurements)
        for tag, values in report.histograms.items():
            self.metrics.histogram(report.step, tag, values)
        totals = {
            "train/samples": state.samples + report.samples,
            "train/tokens": state.tokens + report.tokens,
        }
        self.metrics.curves(report.step, {**totals, **self.watchdog.curves})
        self.findings.append(report, verdict, state)

    def _measurements(self, seconds: float) -> dict[str, float]:
        return {
            "seconds": seconds,
            "wait_seconds": self.batches.take_wait_seconds(),
            "memory_bytes": memory_in_use(self.mesh.device),
        }

    def _name_damaged(self, step: int, names: Sequence[str]) -> None:
        """Name the damaged samples of all ranks, each once."""
        for name in sorted({name for found in self.mesh.gather(names) for name in found}):
            self.metrics.event(step, f"damaged sample masked: {name}")

    def _check_damage(self, state: TrainState) -> None:
        budget = self.config.data.damaged_sample_budget
        if state.damaged > budget:
            raise DataError(
                f"{state.damaged} damaged samples up to step {state.step}, more than "
                f"data.damaged_sample_budget = {budget} allows; they are named above: prepare the data again, "
                "or allow more"
            )

    def _validate(self, state: TrainState, steps: ValidationSet) -> tuple[TrainState, bool]:
        """Take the validation loss, and examples where there are to be some; return also whether that was broken off
        because a rank was asked to stop."""

        def stop() -> bool:
            self.heartbeat.beat(state.step, Phase.VALIDATING, state.attempt)
            return self._asked_to_stop()

        self.heartbeat.beat(state.step, Phase.VALIDATING, state.attempt)
        result = validate(self.engine.evaluator, steps, stop)
        if result and self.examples:
            result = self.examples.add_to(result, self.engine.evaluator, stop)
        if result is None:
            return state, True
        for name in result.damaged:
            self.metrics.event(state.step, f"damaged sample left out of the validation: {name}")
        self.validation_loss = result.loss
        self.metrics.validation(state.step, result.loss, result.targets, result.seconds, result.metrics)
        self.metrics.examples(state.step, result.examples)
        if remark := self.watchdog.health.note_validation(state.step, result.loss):
            self.metrics.event(state.step, remark)
        state = state.after_validation(result.loss, keep_best=self.config.evaluation.keep_best)
        if self.config.ends_at(state) and state.step < self.config.run.steps:
            self.metrics.event(
                state.step,
                f"{state.stale} validations in a row without a lower loss than {state.best_loss:.6g}, that of step "
                f"{state.best_step}: the run ends here, as evaluation.patience says",
            )
        return state, False

    def _asked_to_stop(self) -> bool:
        return self.mesh.agree_any(self.signals.received is not None)

    def _leave(self, state: TrainState) -> None:
        """End the run early, with a checkpoint of where it stands."""
        failure = self.checkpoints.leave(state)
        raise Preempted(
            f"stopped by a signal at step {state.step}; the same command resumes the run{failure}"
        )

    def _report_crash(self, reason: str) -> str:
        """Write a crash report, which shows why the run ended, and return what the error message says of it."""
        if self._last_step is None:
            return ""
        report, verdict = self._last_step
        self.heartbeat.beat(self.state.step, Phase.SAVING, self.state.attempt)
        draws = self.watchdog.draws_since(verdict.onset or report.step) or (self.batches.sample_range(),)
        crash = CrashReport(reason, report, verdict, self.state, self.ledger.history, draws)
        folder, problem = write_crash_report(crash, self.config, self.mesh, self.engine, self.batches)
        return f"; evidence is in {folder}" if folder else f"; no evidence could be written: {problem}"
