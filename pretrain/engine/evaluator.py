"""Evaluation gives the mean loss and the sums of a task's metrics over batches of all ranks, and what a model predicts,
in any layout.

An evaluator needs no optimizer: it shares the DeepSpeed engine of a TrainEngine, or has one of its own
(`make_evaluator`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_pipeline.batches import Batch
from parallel.mesh import ParallelMesh
from parallel.power_step import initialise
from parallel.spectral import find_spectral_layers
from pretrain.backend.schedule import Schedule, make_schedule
from pretrain.backend.setup import build_module, initialize_without_optimizer
from pretrain.engine.parts import ModelParts
from pretrain.engine.targets import normalise, share_of_loss, speaks_for_outputs
from pretrain.tasks.examples import Choice, Inputs
from pretrain.tasks.task import Metric, Objective


class Evaluation(NamedTuple):
    """It tells what came of some batches of all ranks; it is the same on each."""

    loss: float
    """Mean per target."""
    targets: float
    """Sum of the target weights that it is a mean of."""
    sums: tuple[float, ...] = ()
    """Of all metrics, one after the other."""


class MeasuredObjective:
    """DeepSpeed calls it in place of a task's objective, where outputs and labels meet: on the last stage alone.

    While an evaluator asks for it, it does something else with the outputs.
    """

    def __init__(self, objective: Objective, validation_loss: Objective, metrics: Sequence[Metric]) -> None:
        self.metrics = metrics
        self._now = self._objective = objective
        self._validation_loss = validation_loss

    def __call__(self, outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
        return self._now(outputs, labels)

    @contextmanager
    def gathering(self) -> Iterator[list[Tensor]]:
        """Within it the loss is that of validation, and the list that it gives holds the sums of each metric over the
        micro-batches so far.

        Labels must come twice then: as scaled for the loss, and behind them as the data has them, for the metrics.
        """
        sums: list[Tensor] = []

        def measured(outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
            scaled, original = labels[: len(labels) // 2], labels[len(labels) // 2 :]
            loss = self._validation_loss(outputs, scaled)
            new = [metric.sums(outputs, original) for metric in self.metrics]
            sums[:] = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
            return loss

        with self._doing(measured):
            yield sums

    @contextmanager
    def keeping(self, choose: Choice) -> Iterator[list[Tensor]]:
        """Within it there is no loss, and the list that it gives holds what is chosen of the outputs of each
        micro-batch so far, on the host."""
        kept: list[Tensor] = []

        def chosen(outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
            choice = choose(outputs)
            kept.append(choice.cpu())
            return torch.zeros((), device=choice.device)

        with self._doing(chosen):
            yield kept

    @contextmanager
    def _doing(self, instead: Objective) -> Iterator[None]:
        self._now = instead
        try:
            yield
        finally:
            self._now = self._objective


class Evaluator:
    """It runs micro-batches forward and sums up what came out, over all ranks."""

    def __init__(self, schedule: Schedule, objective: MeasuredObjective, mesh: ParallelMesh) -> None:
        """`schedule` must run a module that ends in this `objective`."""
        self.mesh = mesh
        self._schedule = schedule
        self._objective = objective
        self._sizes: tuple[int, ...] | None = None
        """How many sums each metric has; ranks without outputs learn it from those that have them."""

    def evaluate(self, batches: Sequence[Batch]) -> Evaluation:
        """It evaluates this rank's micro-batches together with those of the other ranks.

        Raises:
            BatchesMissing: a rank, not necessarily this one, has no batches.
        """
        scaled, targets = normalise(self.mesh, batches)
        pairs = [(batch.inputs, s.labels + batch.labels) for batch, s in zip(batches, scaled, strict=True)]
        with self._objective.gathering() as sums:
            loss = self._schedule.evaluate(pairs)
        # In a message of its own: gloo adds in an order that depends on a message's length.
        facts = self.mesh.agree_sum(torch.tensor([share_of_loss(self.mesh, loss)], dtype=torch.float64))
        return Evaluation(float(facts), targets, self._reduced(sums))

    def predict(self, inputs: Sequence[Inputs], choose: Choice) -> Sequence[Tensor]:
        """It runs micro-batches forward, together with as many on every other data rank, and returns what is chosen of
        the outputs of each, on all ranks of this replica."""
        with self._objective.keeping(choose) as kept:
            self._schedule.evaluate([(each, ()) for each in inputs])
        return self.mesh.pipeline.from_last(kept)

    @property
    def metrics(self) -> Sequence[Metric]:
        """These are the metrics of the task."""
        return self._objective.metrics

    def values(self, sums: Sequence[float], loss: float) -> dict[str, float]:
        """It returns what the metrics say, by name, of sums, maybe of several evaluations, and of their mean loss."""
        values, start = {}, 0
        for metric, size in zip(self.metrics, self._sizes or (), strict=True):
            values[metric.name] = metric.value(sums[start : start + size], loss)
            start += size
        return values

    def _reduced(self, sums: Sequence[Tensor]) -> tuple[float, ...]:
        if self._sizes is None:
            self._sizes = max(self.mesh.gather(tuple(len(part) for part in sums)))
        if not sum(self._sizes):
            return ()
        if speaks_for_outputs(self.mesh):
            own = torch.cat([part.detach().double().cpu() for part in sums])
        else:
            own = torch.zeros(sum(self._sizes), dtype=torch.float64)
        return tuple(self.mesh.agree_sum(own).tolist())


def make_evaluator(parts: ModelParts, mesh: ParallelMesh, settings: Mapping[str, Any]) -> Evaluator:
    """It builds this rank's layers with their initial weights, and an evaluator that holds nothing but them.

    `settings` is the DeepSpeed JSON of training, of which evaluation takes batch sizes and precision.
    """
    objective = MeasuredObjective(parts.objective, parts.validation_loss, parts.metrics)
    module = build_module(parts.layers, parts.boundaries, mesh, objective)
    engine = initialize_without_optimizer(module, settings, mesh)
    if layers := find_spectral_layers(module):
        initialise(layers, mesh.tensor.group)
    return Evaluator(make_schedule(engine, objective, mesh), objective, mesh)
