"""What the model that is being trained makes of the first samples of the validation set, in any layout."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from data_pipeline.batches import Batch
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.reading.stream import ValidationSet
from data_pipeline.source import companion_of
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.evaluator import Evaluator
from pretrain.engine.targets import speaks_for_outputs
from pretrain.evaluation.validate import Validation
from pretrain.runtime.agreement import agreed, guarded, raise_first
from pretrain.tasks.examples import Example, Examples
from pretrain.tasks.registry import TASKS


class ExampleSet:
    """It is a fixed set of samples, and how its task predicts."""

    def __init__(self, steps: ValidationSet, task: Examples[Any]) -> None:
        self._steps = steps
        self._task = task

    def add_to(
        self, validation: Validation, evaluator: Evaluator, stop: Callable[[], bool]
    ) -> Validation | None:
        """It adds examples and their scores to what came of a validation; None if `stop`, which must answer alike on
        all ranks, said so between two passes.

        Raises DataError when the data of a rank, not necessarily this one, fails.
        """
        started = time.perf_counter()
        examples = self._predicted(evaluator, stop)
        if examples is None:
            return None
        scores = self._task.metrics(examples) if examples else {}
        seconds = validation.seconds + time.perf_counter() - started
        return replace(
            validation, seconds=seconds, metrics={**validation.metrics, **scores}, examples=examples
        )

    def _predicted(self, evaluator: Evaluator, stop: Callable[[], bool]) -> Sequence[Example] | None:
        """It returns the examples of all ranks in the order of the data, the same on each."""
        mesh = evaluator.mesh
        own: dict[int, Example | None] = {}
        for step, (batches, problem) in enumerate(guarded(self._steps)):
            raise_first(mesh, problem)
            rows = self._of_step(batches, evaluator, stop)
            if rows is None:
                return None
            own |= zip(self._steps.numbers(step), rows, strict=True)
        found = mesh.gather(own if speaks_for_outputs(mesh) else {})
        numbered = sorted((number, example) for part in found for number, example in part.items() if example)
        return [example for _, example in numbered]

    def _of_step(
        self, batches: Sequence[Batch], evaluator: Evaluator, stop: Callable[[], bool]
    ) -> Sequence[Example | None] | None:
        """It returns what becomes of the rows of this rank's micro-batches. Ranks take as many passes as the one with
        the most, since what is divided over data ranks can only be used by all at the same time."""
        passes = self._task.passes(batches)
        inputs, rows = next(passes), None
        while True:
            if stop():
                return None
            chosen = evaluator.predict(inputs, self._task.choose)
            if rows is None:
                try:
                    inputs = passes.send(chosen)
                except StopIteration as end:
                    rows = end.value
            if not evaluator.mesh.agree_any(rows is None):
                return rows


def open_examples(
    config: RunConfig,
    mesh: ParallelMesh,
    companions: Mapping[str, bytes],
    stack: ExitStack,
    tell: Callable[[str], None],
) -> ExampleSet | None:
    """It opens the examples of a run that has validation data; none where there are to be none, where its task predicts
    nothing, and where the data comes without what it takes to read them, which it tells."""
    task, samples = TASKS[config.model.kind], config.evaluation.examples
    rank, size = mesh.data.rank, mesh.data.size

    companion = companion_of(companions)

    def opened() -> ValidationSet:
        data = dealt_out(config.data, samples, size)
        return ValidationSet(task.source, data, samples=samples, data_rank=rank, data_size=size)

    if not samples:
        return None
    try:
        examples = agreed(mesh, lambda: task.examples(config.model, config.data, mesh, companion))
    except DataError as error:
        tell(f"validation goes without examples: {error}")
        return None
    if examples is None:
        return None
    steps = agreed(mesh, opened)
    stack.callback(steps.close)
    tell(f"examples of validation: {examples.description}")
    return ExampleSet(steps, examples)


def dealt_out(data: DataConfig, samples: int, data_size: int) -> DataConfig:
    """It returns [data] with batches that deal few samples out to all data ranks: no micro-batch and no step is larger
    than in training, nor than these samples make it."""
    micro = min(data.micro_batch_size, -(-samples // data_size))
    accumulation = data.global_batch_size // (data.micro_batch_size * data_size)
    together = min(accumulation, -(-samples // (micro * data_size)))
    return data.model_copy(
        update={"micro_batch_size": micro, "global_batch_size": micro * data_size * together}
    )
