"""A planted fault has hooks for a run to call, which act on the run from outside, where real faults would.

What is wrong with samples goes by their draws, so that a skip avoids it. Faults of memory and of computation happen
once, by the attempt, so that what is done again is sound. A fault of the learning rate goes by the update.
"""

from typing import Any

from data_pipeline.reading.batches import Batches
from data_pipeline.reading.stream import BatchStream
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.fault_injection.plan import FaultPlan


class Fault:
    """It has hooks for a run to call; here they do nothing, as in the undisturbed twin."""

    def wrap_batches(self, stream: BatchStream[Any, Any]) -> Batches:
        """It returns the stream that the run reads."""
        return stream

    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        """It is called before every optimizer step on every rank, with the number of this attempt, from 1."""

    def learning_rate(self, update: int, rate: float) -> float:
        """It returns the learning rate of update `update`, from 0, which was to be `rate`."""
        return rate


class PlannedFault(Fault):
    """It is a fault with a plan on a rank of a run whose model has what the fault strikes (`FaultPlan.check`)."""

    def __init__(self, plan: FaultPlan, config: RunConfig, mesh: ParallelMesh) -> None:
        self.plan = plan
        self.config = config
        self.mesh = mesh
