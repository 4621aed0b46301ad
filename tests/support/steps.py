"""An engine takes some steps."""

from support.courses import Batches
from support.training import make_batches, proceed

from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine


def train(
    engine: TrainEngine, config: RunConfig, first: int, last: int, batches_of: Batches = make_batches
) -> list[tuple[float, float]]:
    """It takes the steps from `first` to `last`; returns losses and gradient norms."""
    course = []
    for step in range(first, last + 1):
        batches = batches_of(config, engine.mesh, step)
        report, _ = engine.step(batches, proceed, step=step, learning_rate=1e-2 / step)
        course.append((report.loss, report.gradient_norm))
    return course
