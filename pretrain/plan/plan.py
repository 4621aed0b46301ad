"""The plan of a run is what follows from a configuration and a number of ranks before anything starts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.models.outline import Outline
from pretrain.plan.batch import BatchEquation
from pretrain.plan.deepspeed_json import Json, deepspeed_json
from pretrain.plan.memory import (
    MemoryEstimate,
    activation_bytes,
    gradient_bytes,
    optimizer_bytes,
    weight_bytes,
)
from pretrain.plan.rules import layout_problems, layout_warnings


@dataclass(frozen=True)
class ParameterCounts:
    """It counts the parameters of the whole model."""

    parts: Mapping[str, int]
    """By what they belong to, in the order of the outline; 0 where a part has none of its own."""
    looked_up: int
    """Of tables whose rows are looked up: tokens, positions."""

    @property
    def total(self) -> int:
        """It counts all of them."""
        return sum(self.parts.values())

    @property
    def non_embedding(self) -> int:
        """It counts all but the tables that are looked up in."""
        return self.total - self.looked_up


@dataclass(frozen=True)
class Stage:
    """It describes what one rank of a pipeline stage holds."""

    first_layer: int
    last_layer: int
    """One past the last: the stage owns the layers `[first_layer, last_layer)`."""
    blocks: int
    parameters: int
    """Parameters on one tensor-parallel rank of this stage, before ZeRO divides them."""
    memory: MemoryEstimate


@dataclass(frozen=True)
class Plan:
    """A plan is what a configuration comes to on a number of ranks."""

    world_size: int
    tensor: int
    pipeline: int
    data: int
    zero_stage: int
    batch: BatchEquation
    parameters: ParameterCounts
    stages: tuple[Stage, ...]
    flops_per_token: float
    """Model FLOPs of training on one token, over all ranks."""
    steps: int
    deepspeed: Json
    """What DeepSpeed is given."""
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """The whole run takes this many tokens."""
        return self.steps * self.batch.tokens

    @property
    def tokens_per_parameter(self) -> float:
        """It divides the tokens of the run by all parameters; about 20 is compute-optimal (arXiv 2203.15556)."""
        return self.tokens / self.parameters.total

    @property
    def memory(self) -> MemoryEstimate:
        """It returns the estimate of the fullest rank."""
        return max((stage.memory for stage in self.stages), key=lambda memory: memory.total)


def plan(config: RunConfig, world_size: int) -> Plan:
    """It makes the plan of a run.

    Raises ConfigurationError with every rule that the layout breaks, or where the user's own DeepSpeed JSON contradicts
    the configuration.
    """
    if problems := layout_problems(config, world_size):
        ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
        raise ConfigurationError(f"this configuration cannot run on {ranks}", problems)
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    data = world_size // (tensor * pipeline)
    micro = config.data.micro_batch_size
    accumulation = config.data.global_batch_size // (micro * data)
    batch = BatchEquation(micro, accumulation, data, config.data.tokens_per_sample)
    outline = config.model.outline(config.data)
    return Plan(
        world_size=world_size,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        zero_stage=config.parallel.zero_stage,
        batch=batch,
        parameters=count_parameters(outline),
        stages=plan_stages(config, outline, batch),
        flops_per_token=sum(layer.flops for layer in outline.layers) / config.data.tokens_per_sample,
        steps=config.run.steps,
        deepspeed=deepspeed_json(config, batch),
        warnings=tuple(layout_warnings(config, world_size)),
    )


def count_parameters(outline: Outline) -> ParameterCounts:
    """It sums the sizes of the outline's parameters by part."""
    counts = Counter(dict.fromkeys(outline.parts, 0))
    looked_up = 0
    for layer in outline.layers:
        for parameter in layer.parameters:
            counts[parameter.part] += parameter.size
            looked_up += parameter.size if parameter.looked_up else 0
    return ParameterCounts(dict(counts), looked_up)


def plan_stages(config: RunConfig, outline: Outline, batch: BatchEquation) -> tuple[Stage, ...]:
    """Cut the layers into stages; stage i of p keeps up to p - i micro-batches in flight (1F1B schedule)."""
    pipeline = config.parallel.pipeline
    boundaries = outline.partition(pipeline)
    return tuple(
        plan_stage(config, outline, layers, min(pipeline - index, batch.accumulation), batch.data)
        for index, layers in enumerate(pairwise(boundaries))
    )


def plan_stage(
    config: RunConfig, outline: Outline, bounds: tuple[int, int], in_flight: int, data: int
) -> Stage:
    """It plans one stage that holds the layers `[first, last)` and keeps `in_flight` micro-batches."""
    first, last = bounds
    layers = outline.layers[first:last]
    # A copy of a table on another stage than its owner's is kept equal by an all-reduce, and is memory all the same.
    borrowed = {outline.owner(i) for i in range(first, last)} - set(range(first, last))
    held = [p for layer in layers for p in layer.parameters]
    held += [p for owner in borrowed for p in outline.layers[owner].parameters if p.name == "weight"]
    parameters = sum(parameter.size_per_rank(config.parallel.tensor) for parameter in held)
    memory = MemoryEstimate(
        weights=weight_bytes(config, parameters, data),
        gradients=gradient_bytes(config, parameters, data),
        optimizer=optimizer_bytes(config, parameters, data),
        activations=activation_bytes(config, layers, in_flight),
    )
    return Stage(first, last, sum(layer.is_block for layer in layers), parameters, memory)
