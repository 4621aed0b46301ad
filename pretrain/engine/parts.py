"""What an engine is given of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallel.pipeline import LayerSpec
from parallel.rng import RandomStreams
from pretrain.tasks.task import Metric, Objective


@dataclass(frozen=True)
class ModelParts:
    """The layers and where stages begin, the objective, the random streams of the layers, and the metrics."""

    layers: Sequence[LayerSpec]
    boundaries: Sequence[int]
    objective: Objective
    streams: RandomStreams
    metrics: Sequence[Metric] = ()
