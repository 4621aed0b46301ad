"""A TrainEngine is built here from a configuration, on this rank's mesh."""

from collections.abc import Mapping

from data_pipeline.source import companion_of
from parallel.mesh import ParallelMesh
from parallel.rng import RandomStreams
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.engine.evaluator import Evaluator, make_evaluator
from pretrain.engine.parts import ModelParts
from pretrain.models.context import Materials
from pretrain.optim.registry import make_optimizer
from pretrain.plan.plan import Plan
from pretrain.runtime.kernels import Kernels
from pretrain.tasks.registry import TASKS


def assemble_engine(
    config: RunConfig, plan: Plan, mesh: ParallelMesh, kernels: Kernels, companions: Mapping[str, bytes] = {}
) -> TrainEngine:
    """It builds this rank's layers with their initial weights, the optimizer, and the DeepSpeed engine around them.

    `companions` are files that go with the model, by name. Raises DataError where its metrics need one that there is
    not.
    """
    parts = model_parts(config, mesh, kernels, companions)
    return TrainEngine(parts, mesh, plan.deepspeed, make_optimizer(config.optimizer), config)


def assemble_evaluator(config: RunConfig, plan: Plan, mesh: ParallelMesh, kernels: Kernels) -> Evaluator:
    """It builds this rank's layers with their initial weights, and an evaluator that needs no optimizer."""
    return make_evaluator(model_parts(config, mesh, kernels), mesh, plan.deepspeed)


def model_parts(
    config: RunConfig, mesh: ParallelMesh, kernels: Kernels, companions: Mapping[str, bytes] = {}
) -> ModelParts:
    """It returns the model of the configured task with its objective. Raises what `assemble_engine` does."""
    task = TASKS[config.model.kind]
    streams = RandomStreams(config.run.seed, mesh)
    materials = Materials(mesh, streams, kernels, config.run.seed)
    return ModelParts(
        layers=task.layers(config.model, config.data, materials),
        boundaries=config.model.outline(config.data).partition(config.parallel.pipeline),
        objective=task.objective(config.model, mesh),
        validation_loss=task.validation_loss(config.model, mesh),
        streams=streams,
        metrics=task.metrics(config.model, mesh, companion_of(companions)),
    )
