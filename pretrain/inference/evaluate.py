"""A model in one process is evaluated: the loss and metrics of its task, and what they come to in other units.

The numbers are those of validation in training, up to the order in which they are added.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from data_pipeline.source import Companion, TargetMeasure
from pretrain.inference.model import LoadedModel
from pretrain.tasks.registry import TASKS
from pretrain.tasks.scores import Scoring


@dataclass(frozen=True)
class Evaluation:
    """It tells what came of some data."""

    loss: float
    """Mean per target, in the unit of the task's loss."""
    targets: int
    metrics: Mapping[str, float]
    """The task's, by name."""
    units: Mapping[str, int]
    """What the targets amount to, such as bytes of text; empty where there are no such units."""

    def loss_per(self, unit: str) -> float:
        """It returns the mean loss of a unit: the same sum over fewer or more of them. NaN where there are none."""
        return self.loss * self.targets / count if (count := self.units[unit]) else math.nan


@torch.no_grad()
def evaluate(
    model: LoadedModel,
    batches: Iterable[Batch],
    companion: Companion,
    measure: TargetMeasure[Any] | None = None,
    scoring: Scoring | None = None,
) -> Evaluation:
    """It runs all batches through a model, and lets `measure` and `scoring` see them. `companion` returns files that go
    with the model. Raises DataError where no target counts, or a file is not there that metrics need."""
    task, device = TASKS[model.settings.kind], model.mesh.device
    loss_of = task.validation_loss(model.settings, model.mesh)
    metrics = task.metrics(model.settings, model.mesh, companion)
    loss, targets = 0.0, 0.0
    sums = [torch.zeros(0, dtype=torch.float64) for _ in metrics]
    for batch in batches:
        outputs = model.layers(*(tensor.to(device) for tensor in batch.inputs))
        labels = tuple(tensor.to(device) for tensor in batch.labels)
        loss += loss_of(outputs, labels).double().item()
        targets += batch.target_weight
        for number, metric in enumerate(metrics):
            new = metric.sums(outputs, labels).double().cpu()
            sums[number] = sums[number] + new if len(sums[number]) else new
        if measure:
            measure.add(batch)
        if scoring:
            scoring.add(batch, outputs)
    if not targets:
        raise DataError(
            "there is no target to be evaluated: the data is empty, or all its samples are damaged"
        )
    mean = loss / targets
    values = {metric.name: metric.value(s.tolist(), mean) for metric, s in zip(metrics, sums, strict=True)}
    return Evaluation(mean, round(targets), values, measure.totals() if measure else {})
