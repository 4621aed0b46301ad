"""Losses and gradient norms of some steps in a layout are compared with those of another."""

from support.training import Layout, make_batches, make_config, make_engine, make_mesh, proceed

STEPS = 20


Losses = list[tuple[float, float]]


def train(layout: Layout, model: dict[str, object], steps: int = STEPS) -> Losses:
    """It returns (loss, gradient norm) of each step, then the validation loss and its weight."""
    config = make_config(layout, **model)
    mesh = make_mesh(config.parallel)
    engine = make_engine(config, mesh)
    course = []
    for step in range(1, steps + 1):
        report, _ = engine.step(make_batches(config, mesh, step), proceed, step=step, learning_rate=1e-3)
        course.append((report.loss, report.gradient_norm))
    validation = engine.evaluate(make_batches(config, mesh, 0))
    return [*course, (validation.loss, validation.targets)]


def largest_difference(course: Losses, reference: Losses, column: int) -> float:
    pairs = zip(course, reference, strict=True)
    return max(abs(ours[column] - theirs[column]) / abs(theirs[column]) for ours, theirs in pairs)
