"""Losses and gradient norms of some steps in a layout are compared with those of another."""

from collections.abc import Callable, Sequence
from typing import Any

from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig

STEPS = 20

Losses = list[tuple[float, float]]
Batches = Callable[[RunConfig, ParallelMesh, int], Sequence[Any]]
"""It gives this rank's micro-batches of a step."""


def train(layout: Layout, model: dict[str, object], steps: int = STEPS) -> Losses:
    """It trains a GPT, see `course_of`."""
    return course_of(make_config(layout, **model), make_batches, steps)


def course_of(config: RunConfig, batches: Batches, steps: int = STEPS) -> Losses:
    """It returns (loss, gradient norm) of each step, then the validation loss and its weight."""
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    course = []
    for step in range(1, steps + 1):
        report, _ = engine.step(batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)
        course.append((report.loss, report.gradient_norm))
    validation = engine.evaluate(batches(config, mesh, 0))
    return [*course, (validation.loss, validation.targets)]


def largest_difference(course: Losses, reference: Losses, column: int) -> float:
    pairs = zip(course, reference, strict=True)
    return max(abs(ours[column] - theirs[column]) / abs(theirs[column]) for ours, theirs in pairs)
