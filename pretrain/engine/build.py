"""From a configuration to a TrainEngine on this rank's mesh."""

import torch
from torch import nn

from parallel.mesh import ParallelMesh
from parallel.partition import partition_layers
from parallel.rng import RandomStreams
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.engine.evaluator import Evaluator, make_evaluator
from pretrain.engine.parts import ModelParts
from pretrain.models.context import LayerContext
from pretrain.optim.optim import make_adamw, parameter_groups
from pretrain.plan.deepspeed_json import deepspeed_json
from pretrain.plan.plan import Plan
from pretrain.runtime.kernels import Kernels
from pretrain.tasks.gpt.metric import Perplexity
from pretrain.tasks.gpt.model import gpt_layers
from pretrain.tasks.gpt.objective import NextToken


def assemble_engine(config: RunConfig, plan: Plan, mesh: ParallelMesh, kernels: Kernels) -> TrainEngine:
    """Build this rank's layers with their initial weights, the optimizer, and the DeepSpeed engine around them."""

    def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(module.parameters(), config.optimizer.weight_decay)
        return make_adamw(groups, config.optimizer, kernels.adamw)

    parts = gpt_parts(config, mesh, kernels)
    return TrainEngine(parts, mesh, deepspeed_json(config, plan), make_optimizer, config)


def assemble_evaluator(config: RunConfig, plan: Plan, mesh: ParallelMesh, kernels: Kernels) -> Evaluator:
    """It builds this rank's layers with their initial weights, and an evaluator that needs no optimizer."""
    return make_evaluator(gpt_parts(config, mesh, kernels), mesh, deepspeed_json(config, plan))


def gpt_parts(config: RunConfig, mesh: ParallelMesh, kernels: Kernels) -> ModelParts:
    """A GPT with its objective, next-token prediction."""
    streams = RandomStreams(config.run.seed, mesh)
    context = LayerContext(
        config.model,
        mesh,
        streams,
        kernels.norm(config.model.normalization, bias=config.model.bias),
        config.run.seed,
    )
    return ModelParts(
        layers=gpt_layers(context, config.data.sequence_length),
        boundaries=partition_layers(config.model.num_layers, config.parallel.pipeline),
        objective=NextToken(mesh.tensor),
        streams=streams,
        metrics=(Perplexity(),),
    )
