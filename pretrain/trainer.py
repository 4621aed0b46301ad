"""The loop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import psutil
import torch

from data_pipeline.errors import DataError
from data_pipeline.stream import BatchStream, ValidationSet
from parallel.mesh import ParallelMesh
from pretrain.agreement import guarded, raise_first
from pretrain.checkpoint import Checkpointer
from pretrain.config import RunConfig
from pretrain.engine import BatchesMissing, TrainEngine
from pretrain.errors import CheckpointError, Preempted, TrainingDiverged
from pretrain.evaluate import validate
from pretrain.journal import Journaling
from pretrain.optim import learning_rate
from pretrain.records import Action, StepReport, TrainState, Verdict
from pretrain.signals import StopSignals

RunJudge = Callable[[StepReport, TrainState], Verdict]
"""Judges a step, given the state before it; must be pure, so that all ranks come to the same verdict."""


@dataclass(frozen=True)
class Collaborators:
    """Everything that a trainer works with; put together in `pretrain.__main__`."""

    mesh: ParallelMesh
    engine: TrainEngine
    batches: BatchStream
    validation: ValidationSet
    checkpointer: Checkpointer
    journal: Journaling
    judge: RunJudge
    signals: StopSignals


class Trainer:
    """Trains until the last step, a request to stop, or the end of hope."""

    def __init__(self, config: RunConfig, collaborators: Collaborators) -> None:
        self.config = config
        self.mesh = collaborators.mesh
        self.engine = collaborators.engine
        self.batches = collaborators.batches
        self.validation = collaborators.validation
        self.checkpointer = collaborators.checkpointer
        self.journal = collaborators.journal
        self.judge = collaborators.judge
        self.signals = collaborators.signals
        self._steps = guarded(self.batches)
        self.validation_loss: float | None = None
        """The last validation loss that this process has taken."""
        self._lost = ""
        """What to say of a stop if the last save failed."""
        self._saved = 0
        """The last step that a checkpoint was taken of, or tried."""

    def run(self, state: TrainState) -> TrainState:
        """Train from `state`, which is that of the newest checkpoint if there is one, to the last step.

        Raises:
            Preempted: a signal asked to stop, and a checkpoint is sealed.
            TrainingDiverged: the judge gave up.
            DataError: data is missing, or more samples are damaged than the budget allows.
            CheckpointError: the last checkpoint could not be saved.
        """
        self._saved = state.step
        stopping = self._asked_to_stop()
        while not stopping and not self._complete(state):
            if self._validation_due(state):
                state, stopping = self._validate(state)
            elif self._checkpoint_due(state):
                self._save(state)
            else:
                state, stopping = self._advance(state)
        if stopping:
            self._leave(state)
        return state

    def _complete(self, state: TrainState) -> bool:
        due = self._validation_due(state) or self._checkpoint_due(state)
        return state.step >= self.config.run.steps and not due

    def _validation_due(self, state: TrainState) -> bool:
        return state.validated < state.step and self._at(state, self.config.evaluation.every_steps)

    def _checkpoint_due(self, state: TrainState) -> bool:
        return self._saved < state.step and self._at(state, self.config.checkpoint.every_steps)

    def _at(self, state: TrainState, every: int) -> bool:
        """At a multiple of `every` steps, or at the last step."""
        return state.step % every == 0 or state.step == self.config.run.steps

    def _advance(self, state: TrainState) -> tuple[TrainState, bool]:
        """One optimizer step; also whether a rank was asked to stop."""
        started = time.perf_counter()
        report, verdict = self._step(state)
        self.journal.record(report, verdict, self._measure(started))  # also the step that ends the run
        for tag, values in report.histograms.items():
            self.journal.histogram(report.step, tag, values)
        if verdict.action is Action.HALT:
            raise TrainingDiverged(verdict.reason)
        state = state.after(report, verdict)
        self._check_damage(state)
        return state, report.interrupted

    def _step(self, state: TrainState) -> tuple[StepReport, Verdict]:
        batches, problem = next(self._steps)
        peak, total = self.config.optimizer.learning_rate, self.config.run.steps
        try:
            report, verdict = self.engine.step(
                batches,
                judge=lambda report: self.judge(report, state),
                step=state.step + 1,
                learning_rate=learning_rate(state.updates, total, self.config.schedule, peak),
                interrupted=self.signals.received is not None,
            )
        except BatchesMissing:
            raise_first(self.mesh, problem)
            raise
        if report.damaged:
            self._name_damaged(report.step, [name for batch in batches for name in batch.damaged])
        return report, verdict

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
        result = validate(self.engine, self.validation, self._asked_to_stop)
        if result is None:
            return state, True
        self.validation_loss = result.loss
        self.journal.validation(state.step, result.loss, result.targets, result.seconds)
        return replace(state, validated=state.step), False

    def _asked_to_stop(self) -> bool:
        return self.mesh.agree_any(self.signals.received is not None)

    def _save(self, state: TrainState) -> None:
        """A save that fails costs this checkpoint, not the run, unless there is no later one to come."""
        saved = self.checkpointer.save(self.engine, state, self.batches.state())
        self._saved = state.step
        if saved.tag is not None:
            self._lost = ""
            self.journal.event(state.step, f"checkpoint {saved.tag} saved")
        elif state.step == self.config.run.steps:
            raise CheckpointError(f"the last checkpoint could not be saved: {saved.problem}")
        else:
            self._lost = (
                f", from an older checkpoint: that of step {state.step} could not be saved ({saved.problem})"
            )
            self.journal.event(state.step, f"checkpoint not saved: {saved.problem}")

    def _leave(self, state: TrainState) -> None:
        """End the run early, with a checkpoint of where it stands."""
        if self._saved < state.step:
            self._save(state)
        raise Preempted(
            f"stopped by a signal at step {state.step}; the same command resumes the run{self._lost}"
        )
