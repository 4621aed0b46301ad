"""The plan of a run: what follows from a configuration and a number of ranks before anything starts."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from parallel.partition import LAYERS_AFTER_BLOCKS, LAYERS_BEFORE_BLOCKS, partition_layers
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError, Problem
from pretrain.plan.memory import (
    MemoryEstimate,
    activation_bytes,
    flops_per_token,
    gradient_bytes,
    optimizer_bytes,
    weight_bytes,
)
from pretrain.plan.rules import layout_problems, layout_warnings
from pretrain.tasks.gpt.sizes import ParameterShape, Part, parameter_shapes


@dataclass(frozen=True)
class BatchEquation:
    """micro x accumulation x data = global, in samples."""

    micro: int
    accumulation: int
    data: int
    sequence_length: int

    @property
    def samples(self) -> int:
        """Samples of one optimizer step."""
        return self.micro * self.accumulation * self.data

    @property
    def tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.samples * self.sequence_length


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of the whole model, by what they belong to."""

    embedding: int
    positions: int
    attention: int
    feed_forward: int
    norms: int
    head: int
    """0 where the head uses the embedding table."""

    @property
    def total(self) -> int:
        return self.non_embedding + self.embedding + self.positions

    @property
    def non_embedding(self) -> int:
        """All but the tables of tokens and positions."""
        return self.attention + self.feed_forward + self.norms + self.head


@dataclass(frozen=True)
class Stage:
    """What one rank of a pipeline stage holds."""

    first_layer: int
    last_layer: int
    """One past the last: the stage owns the layers `[first_layer, last_layer)`."""
    blocks: int
    parameters: int
    """Parameters on one tensor-parallel rank of this stage, before ZeRO divides them."""
    memory: MemoryEstimate


@dataclass(frozen=True)
class Plan:
    """A configuration on a number of ranks."""

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
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.batch.tokens

    @property
    def tokens_per_parameter(self) -> float:
        """Tokens of the run over all parameters; about 20 is compute-optimal (arXiv 2203.15556)."""
        return self.tokens / self.parameters.total

    @property
    def memory(self) -> MemoryEstimate:
        """The estimate of the fullest rank."""
        return max((stage.memory for stage in self.stages), key=lambda memory: memory.total)


def check_layout(config: RunConfig, world_size: int) -> list[Problem]:
    """Everything that cannot work with this configuration on `world_size` ranks; empty when all is well."""
    return layout_problems(config, world_size)


def plan(config: RunConfig, world_size: int) -> Plan:
    """The plan of a run; raises ConfigurationError with every rule that the layout breaks."""
    if problems := check_layout(config, world_size):
        ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
        raise ConfigurationError(f"this configuration cannot run on {ranks}", problems)
    tensor, pipeline = config.parallel.tensor, config.parallel.pipeline
    data = world_size // (tensor * pipeline)
    micro = config.data.micro_batch_size
    batch = BatchEquation(
        micro, config.data.global_batch_size // (micro * data), data, config.data.sequence_length
    )
    shapes = parameter_shapes(config.model, config.data.sequence_length)
    return Plan(
        world_size=world_size,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        zero_stage=config.parallel.zero_stage,
        batch=batch,
        parameters=count_parameters(shapes),
        stages=plan_stages(config, shapes, batch),
        flops_per_token=model_flops(config, shapes),
        steps=config.run.steps,
        warnings=tuple(layout_warnings(config, world_size)),
    )


def count_parameters(shapes: Sequence[ParameterShape]) -> ParameterCounts:
    """Sum the sizes by part."""
    counts: Counter[Part] = Counter()
    for shape in shapes:
        counts[shape.part] += shape.size
    return ParameterCounts(**{part.value: counts[part] for part in Part})


def plan_stages(
    config: RunConfig, shapes: Sequence[ParameterShape], batch: BatchEquation
) -> tuple[Stage, ...]:
    """Cut the layers into stages; stage i of p keeps up to p - i micro-batches in flight (1F1B schedule)."""
    pipeline = config.parallel.pipeline
    boundaries = partition_layers(config.model.num_layers, pipeline)
    stages = []
    for index, (first, last) in enumerate(pairwise(boundaries)):
        held = [shape for shape in shapes if first <= shape.layer < last]
        if index == pipeline - 1 > 0 and config.model.tied_embeddings:
            held.append(shapes[0])  # the head's copy of the embedding table, kept equal by an all-reduce
        in_flight = min(pipeline - index, batch.accumulation)
        stages.append(plan_stage(config, (first, last), held, in_flight, batch.data))
    return tuple(stages)


def plan_stage(
    config: RunConfig, layers: tuple[int, int], held: Sequence[ParameterShape], in_flight: int, data: int
) -> Stage:
    """One stage that holds the parameters `held` and keeps `in_flight` micro-batches."""
    first, last = layers
    end_of_blocks = LAYERS_BEFORE_BLOCKS + config.model.num_layers
    blocks = min(last, end_of_blocks) - max(first, LAYERS_BEFORE_BLOCKS)
    parameters = sum(shape.size_per_rank(config.parallel.tensor) for shape in held)
    has_head = last == end_of_blocks + LAYERS_AFTER_BLOCKS
    memory = MemoryEstimate(
        weights=weight_bytes(config, parameters, data),
        gradients=gradient_bytes(config, parameters, data),
        optimizer=optimizer_bytes(config, parameters, data),
        activations=activation_bytes(config, blocks, in_flight, has_head),
    )
    return Stage(first, last, blocks, parameters, memory)


def model_flops(config: RunConfig, shapes: Sequence[ParameterShape]) -> float:
    """FLOPs of training on one token."""
    matrices = (Part.ATTENTION, Part.FEED_FORWARD)
    multiplied = sum(shape.size for shape in shapes if shape.part in matrices and len(shape.shape) == 2)
    head = config.model.padded_vocabulary_size * config.model.hidden_size
    return flops_per_token(config.model, multiplied + head, config.data.sequence_length)
