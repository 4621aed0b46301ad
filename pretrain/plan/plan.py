"""The plan of a run is what follows from a configuration and a number of ranks before anything starts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.models.outline import Outline
from pretrain.plan.arming import arming_warnings
from pretrain.plan.batch import BatchEquation
from pretrain.plan.deepspeed_json import Json, deepspeed_json
from pretrain.plan.memory import (
    MemoryEstimate,
    activation_bytes,
    bucket_bytes,
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
    """Model FLOPs of a pass over one token, forward and backward, over all ranks."""
    steps: int
    deepspeed: Json
    """What DeepSpeed is given."""
    sharpness_aware_steps: int = 0
    """Of all steps, those that take two passes."""
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
    def passes(self) -> float:
        """It returns the passes that a step takes on average: about what a run costs, next to one of ordinary steps."""
        return 1 + self.sharpness_aware_steps / self.steps

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
    data = world_size // config.parallel.model_size
    micro = config.data.micro_batch_size
    accumulation = config.data.global_batch_size // (micro * data)
    batch = BatchEquation(micro, accumulation, data, config.data.tokens_per_sample)
    outline = config.model.outline(config.data)
    held = [parameters_held(outline, layers, tensor) for layers in pairwise(outline.partition(pipeline))]
    deepspeed = deepspeed_json(config, batch, max(held))
    return Plan(
        world_size=world_size,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        zero_stage=config.parallel.zero_stage,
        batch=batch,
        parameters=count_parameters(outline),
        stages=plan_stages(config, outline, batch, held, deepspeed),
        flops_per_token=sum(layer.flops for layer in outline.layers) / config.data.tokens_per_sample,
        steps=config.run.steps,
        deepspeed=deepspeed,
        sharpness_aware_steps=config.optimizer.sharpness_aware.among(config.run.steps),
        warnings=(*layout_warnings(config, world_size), *arming_warnings(config)),
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


def parameters_held(outline: Outline, bounds: tuple[int, int], tensor: int) -> int:
    """It counts the parameters on one tensor-parallel rank of the stage that holds the layers `[first, last)`."""
    first, last = bounds
    # A copy of a table on another stage than its owner's is kept equal by an all-reduce, and is memory all the same.
    borrowed = {outline.owner(i) for i in range(first, last)} - set(range(first, last))
    held = [p for layer in outline.layers[first:last] for p in layer.parameters]
    held += [p for owner in borrowed for p in outline.layers[owner].parameters if p.name == "weight"]
    return sum(parameter.size_per_rank(tensor) for parameter in held)


def plan_stages(
    config: RunConfig, outline: Outline, batch: BatchEquation, held: Sequence[int], deepspeed: Json
) -> tuple[Stage, ...]:
    """It plans the stages that hold so many parameters; stage i of p keeps up to p - i micro-batches in flight (1F1B
    schedule)."""
    pipeline = config.parallel.pipeline
    stages = []
    for index, (first, last) in enumerate(pairwise(outline.partition(pipeline))):
        layers, parameters = outline.layers[first:last], held[index]
        activations = activation_bytes(config, layers, min(pipeline - index, batch.accumulation))
        memory = MemoryEstimate(
            weights=weight_bytes(config, parameters, batch.data),
            gradients=gradient_bytes(config, parameters, batch.data),
            optimizer=optimizer_bytes(config, parameters, batch.data),
            buckets=bucket_bytes(config, deepspeed["zero_optimization"], parameters, batch.data, activations),
            activations=activations,
        )
        stages.append(Stage(first, last, sum(layer.is_block for layer in layers), parameters, memory))
    return tuple(stages)
