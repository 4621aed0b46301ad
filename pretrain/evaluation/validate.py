"""Loss on the fixed validation set."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from pretrain.engine.engine import BatchesMissing, TrainEngine
from pretrain.runtime.agreement import guarded, raise_first


@dataclass(frozen=True)
class Validation:
    """Outcome of one pass over the validation set, the same on every rank."""

    loss: float
    """Mean over all targets, in nats."""
    targets: int
    """Sum of the targets' weights."""
    seconds: float


def validate(
    engine: TrainEngine, steps: Iterable[Sequence[Batch]], stop: Callable[[], bool]
) -> Validation | None:
    """Mean loss over all steps; None if `stop`, which must answer alike on all ranks, said so in between.

    Raises DataError on all ranks when the data of one fails.
    """
    started = time.perf_counter()
    total = targets = 0.0
    for batches, problem in guarded(steps):
        if stop():
            return None
        try:
            loss, weight = engine.evaluate(batches)
        except BatchesMissing:
            raise_first(engine.mesh, problem)
            raise
        total += loss * weight
        targets += weight
    if not targets:
        raise DataError("no target of the validation set counts: all its samples are damaged")
    return Validation(total / targets, round(targets), time.perf_counter() - started)
