"""A TrainEngine is built here from a configuration, on this rank's mesh."""

import warnings
from collections.abc import Callable, Mapping

from data_pipeline.source import companion_of
from parallel.mesh import ParallelMesh
from parallel.rng import RandomStreams
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.engine.evaluator import Evaluator, make_evaluator
from pretrain.engine.parts import ModelParts
from pretrain.models.compiler import Compiler
from pretrain.models.context import Materials
from pretrain.optim.registry import make_optimizer
from pretrain.plan.plan import Plan
from pretrain.runtime.kernels import Kernels
from pretrain.tasks.registry import TASKS


def assemble_engine(
    config: RunConfig,
    plan: Plan,
    mesh: ParallelMesh,
    kernels: Kernels,
    companions: Mapping[str, bytes] = {},
    report: Callable[[str], None] = warnings.warn,
) -> TrainEngine:
    """It builds this rank's layers with their initial weights, the optimizer, and the DeepSpeed engine around them.

    `companions` are files that go with the model, by name; `report` is told what has to be left out. Raises DataError
    where metrics of the model need a companion that there is not.
    """
    parts = model_parts(config, mesh, kernels, companions, make_compiler(config, mesh, report))
    return TrainEngine(parts, mesh, plan.deepspeed, make_optimizer(config.optimizer), config)


def make_compiler(config: RunConfig, mesh: ParallelMesh, report: Callable[[str], None]) -> Compiler | None:
    """It makes what compiles blocks, if they are to be and every rank can. Ranks are asked, since all do the same."""
    if not getattr(config.model, "compile", False):  # models without such blocks have no such key
        return None
    compiler = Compiler()
    for rank, problem in enumerate(mesh.gather(compiler.problem(mesh.device))):
        if problem:
            report(
                f"model.compile = true: blocks run uncompiled, since rank {rank} has no compiler that works: {problem}"
            )
            return None
    return compiler


def assemble_evaluator(config: RunConfig, plan: Plan, mesh: ParallelMesh, kernels: Kernels) -> Evaluator:
    """It builds this rank's layers with their initial weights, and an evaluator that needs no optimizer."""
    return make_evaluator(model_parts(config, mesh, kernels), mesh, plan.deepspeed)


def model_parts(
    config: RunConfig,
    mesh: ParallelMesh,
    kernels: Kernels,
    companions: Mapping[str, bytes] = {},
    compiler: Compiler | None = None,
) -> ModelParts:
    """It returns the model of the configured task with its objective. Raises what `assemble_engine` does."""
    task = TASKS[config.model.kind]
    streams = RandomStreams(config.run.seed, mesh)
    materials = Materials(mesh, streams, kernels, config.run.seed, compiler)
    return ModelParts(
        layers=task.layers(config.model, config.data, materials),
        boundaries=config.model.outline(config.data).partition(config.parallel.pipeline),
        objective=task.objective(config.model, mesh),
        validation_loss=task.validation_loss(config.model, mesh),
        streams=streams,
        metrics=task.metrics(config.model, mesh, companion_of(companions)),
    )
