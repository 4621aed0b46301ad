"""This module has the faults that a plan can name."""

from collections.abc import Mapping

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.fault_injection.computation import HighLearningRate, InfiniteLoss, NanGradient
from pretrain.fault_injection.fault import Fault, PlannedFault
from pretrain.fault_injection.memory import ExplodingLogits, ExponentFlip, ReplicaFlip, TevDrift
from pretrain.fault_injection.plan import FaultPlan
from pretrain.fault_injection.samples import GarbageBatch, PoisonedSamples

KINDS: Mapping[str, type[PlannedFault]] = {
    "poisoned_samples": PoisonedSamples,
    "garbage_batch": GarbageBatch,
    "nan_gradient": NanGradient,
    "infinite_loss": InfiniteLoss,
    "high_learning_rate": HighLearningRate,
    "exponent_flip": ExponentFlip,
    "replica_flip": ReplicaFlip,
    "tev_drift": TevDrift,
    "exploding_logits": ExplodingLogits,
}


def make_fault(plan: FaultPlan | None, config: RunConfig, mesh: ParallelMesh) -> Fault:
    """It makes the fault of a plan, or without one a fault that does nothing.

    Raises ConfigurationError where the model has nothing that the fault could strike.
    """
    if plan is None:
        return Fault()
    plan.check(config.model.outline(config.data))
    return KINDS[plan.name](plan, config, mesh)
