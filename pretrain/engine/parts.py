"""An engine is given these parts of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.pipeline import LayerSpec
from parallel.rng import RandomStreams
from pretrain.tasks.task import Metric, Objective


@dataclass(frozen=True)
class ModelParts:
    """An engine is made of layers, of where stages begin, and of what is minimised and validated, random streams and
    metrics that go with them."""

    layers: Sequence[LayerSpec]
    boundaries: Sequence[int]
    objective: Objective
    validation_loss: Objective
    streams: RandomStreams
    metrics: Sequence[Metric] = ()
