"""Loss and metrics on the fixed validation set."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_pipeline.batches import Batch
from data_pipeline.errors import DataError
from pretrain.config.run import ProbesConfig
from pretrain.engine.evaluator import Evaluation, Evaluator
from pretrain.engine.targets import BatchesMissing
from pretrain.runtime.agreement import guarded, raise_first
from pretrain.tasks.examples import Example


@dataclass(frozen=True)
class Validation:
    """It tells what came of one pass over the validation set; it is the same on every rank."""

    loss: float
    """Mean over all targets."""
    targets: int
    """Sum of the targets' weights."""
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The task's, by name."""
    examples: Sequence[Example] = ()
    """What the model made of single samples, in the order of the data."""
    damaged: Sequence[str] = ()
    """Names of samples that were found damaged on any rank, and count for nothing."""


def validate(
    evaluator: Evaluator, steps: Iterable[Sequence[Batch]], stop: Callable[[], bool]
) -> Validation | None:
    """It evaluates all steps; None if `stop`, which must answer alike on all ranks, said so in between.

    Raises:
        DataError: the data of a rank, not necessarily this one, fails.
    """
    started = time.perf_counter()
    parts, damaged = [], set()
    for batches, problem in guarded(steps):
        if stop():
            return None
        damaged |= {name for batch in batches for name in batch.damaged}
        try:
            parts.append(evaluator.evaluate(batches))
        except BatchesMissing:
            raise_first(evaluator.mesh, problem)
            raise
    whole = summed(parts)
    if not whole.targets:
        raise DataError("no target of the validation set counts: all its samples are damaged")
    return Validation(
        whole.loss,
        round(whole.targets),
        time.perf_counter() - started,
        evaluator.values(whole.sums, whole.loss),
        damaged=sorted(set().union(*evaluator.mesh.gather(damaged))),
    )


def summed(parts: Sequence[Evaluation]) -> Evaluation:
    """It makes several evaluations one: the loss is the mean over the targets of all."""
    total = targets = 0.0
    for part in parts:
        total += part.loss * part.targets
        targets += part.targets
    sums = tuple(map(sum, zip(*(part.sums for part in parts), strict=True)))
    return Evaluation(total / targets if targets else 0.0, targets, sums)


def check_validation(found: Sequence[bool], probes: ProbesConfig) -> None:
    """It raises DataError where some ranks have found validation data and others have not, or it is missed."""
    if probes.sharpness and not any(found):
        raise DataError("probes.sharpness = true: is measured on validation data, and there is none")
    if len(set(found)) > 1:
        raise DataError(
            f"rank {found.index(True)} finds a validation split beside the training data, rank {found.index(False)} "
            "finds none; give all hosts the same data"
        )
