"""The loop."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import torch

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from data_pipeline.stream import BatchStream, ValidationSet
from parallel.mesh import ParallelMesh
from pretrain.checkpoint import Checkpointer
from pretrain.config import RunConfig
from pretrain.engine import BatchesMissing, TrainEngine
from pretrain.errors import CheckpointError, Preempted, TrainingDiverged
from pretrain.evaluate import validate
from pretrain.journal import Journaling
from pretrain.optim import learning_rate
from pretrain.records import Action, StepReport, TrainState, Verdict
from pretrain.signals import StopSignals


@dataclass(frozen=True)
class Collaborators:
    """Everything that a trainer works with; put together in `pretrain.__main__`."""

    mesh: ParallelMesh
    engine: TrainEngine
    batches: BatchStream
    validation: ValidationSet
    checkpointer: Checkpointer
    journal: Journaling
    judge: Callable[[StepReport, TrainState], Verdict]
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

    def run(self, state: TrainState) -> TrainState:
        """Train from `state` to the configured number of steps.

        Raises:
            Preempted: a signal asked to stop, and a checkpoint is sealed.
            TrainingDiverged: the judge gave up.
            DataError: data is missing, or more samples are damaged than the budget allows.
            CheckpointError: the last checkpoint could not be saved.
        """
        stopping = self._asked_to_stop()
        while state.step < self.config.run.steps and not stopping:
            started = time.perf_counter()
            report, verdict = self._step(state)
            self.journal.record(report, verdict, self._measure(started))  # also the step that ends the run
            if verdict.action is Action.HALT:
                raise TrainingDiverged(verdict.reason)
            state = state.after(report, verdict)
            self._check_damage(state)
            stopping = report.interrupted
            if not stopping and self._due(state, self.config.evaluation.every_steps):
                stopping = not self._validate(state)
            if stopping or self._due(state, self.config.checkpoint.every_steps):
                self._save(state)
        if stopping:
            self._leave(state)
        return state

    def _step(self, state: TrainState) -> tuple[StepReport, Verdict]:
        batches, problem = self._next_batches()
        peak, total = self.config.optimizer.learning_rate, self.config.run.steps
        try:
            return self.engine.step(
                batches,
                judge=lambda report: self.judge(report, state),
                step=state.step + 1,
                learning_rate=learning_rate(state.updates, total, self.config.schedule, peak),
                interrupted=self.signals.received is not None,
            )
        except BatchesMissing:
            raise DataError(next(filter(None, self.mesh.gather(problem)))) from None

    def _next_batches(self) -> tuple[Sequence[Batch], str]:
        """The batches of the next step, or none and why: a rank that raised here would leave the others waiting."""
        try:
            batches = next(self.batches)
        except DataError as error:
            return (), str(error)
        for name in (name for batch in batches for name in batch.damaged):
            self.journal.event(0, f"damaged sample masked: {name}")
        return batches, ""

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

    def _due(self, state: TrainState, every: int) -> bool:
        return state.step % every == 0 or state.step == self.config.run.steps

    def _check_damage(self, state: TrainState) -> None:
        budget = self.config.data.damaged_sample_budget
        if state.damaged > budget:
            raise DataError(
                f"{state.damaged} damaged samples up to step {state.step}, more than "
                f"data.damaged_sample_budget = {budget} allows; they are named above: prepare the data again, "
                "or allow more"
            )

    def _validate(self, state: TrainState) -> bool:
        """False if the evaluation was broken off because a rank was asked to stop."""
        result = validate(self.engine, self.validation, self._asked_to_stop)
        if result is None:
            return False
        self.journal.validation(state.step, result.loss, result.targets, result.seconds)
        return True

    def _asked_to_stop(self) -> bool:
        return self.mesh.agree_any(self.signals.received is not None)

    def _save(self, state: TrainState) -> None:
        """A save that fails costs this checkpoint, not the run, unless there is no later one to come."""
        saved = self.checkpointer.save(self.engine, state, self.batches.state())
        if saved.tag is not None:
            self.journal.event(state.step, f"checkpoint {saved.tag} saved")
        elif state.step == self.config.run.steps:
            raise CheckpointError(f"the last checkpoint could not be saved: {saved.problem}")
        else:
            self.journal.event(state.step, f"checkpoint not saved, training goes on: {saved.problem}")

    def _leave(self, state: TrainState) -> None:
        raise Preempted(f"stopped by a signal at step {state.step}; the same command resumes the run")
