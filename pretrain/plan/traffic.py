"""This module counts what ranks send each other in a step, and how much; tests count the same of real steps.

Left out is what has some bytes alone: shapes, flags, and the facts that all ranks agree on (`AGREEMENTS`).

b  samples in a micro-batch   e  bytes of a number in the compute dtype
m  micro-batches of a step    P  parameters on a rank
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod
from typing import Any, Literal

from pretrain.config.run import RunConfig
from pretrain.models.outline import LayerSize, Outline, stage_of
from pretrain.plan.deepspeed_keys import ZERO_3_DEFAULTS
from pretrain.plan.memory import DTYPE_BYTES, FP32_BYTES, LARGEST_BUCKET
from pretrain.plan.plan import Plan, Stage

Axis = Literal["tensor", "pipeline", "tied", "data", "stage"]
"""Between which ranks: those that share matrices, neighbours in a pipeline, stages that share a table, replicas, and
tensor x data."""
Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "send", "receive"]

AGREEMENTS = 3
"""Times that all ranks agree on something in a step, over gloo: on weights of targets, on the facts of the step, and on
what the probes have seen. LARS and LAMB have one more."""


@dataclass(frozen=True)
class Message:
    """It describes messages of one kind and size that a rank takes part in."""

    axis: Axis
    kind: Kind
    bytes: int
    """Of what is sent, or of the whole that is reduced, gathered or scattered."""
    times: int
    """In a step."""
    beside: float = 0.0
    """FLOPs that the device computes during one of them."""


def step_traffic(config: RunConfig, plan: Plan) -> tuple[tuple[Message, ...], ...]:
    """It returns the messages of a rank of each pipeline stage, in a step without a look of the probes."""
    outline = config.model.outline(config.data)
    boundaries = outline.partition(plan.pipeline)
    traffic = []
    for index, (stage, (first, last)) in enumerate(zip(plan.stages, pairwise(boundaries), strict=True)):
        layers = outline.layers[first:last]
        messages = [
            *tensor_messages(config, plan, layers),
            *pipeline_messages(config, plan, outline, index),
            *tied_messages(config, plan, outline, boundaries, index),
            *data_messages(config, plan, layers, stage),
            *spectral_messages(plan, layers),
        ]
        traffic.append(tuple(message for message in messages if message.times))
    return tuple(traffic)


def tensor_messages(config: RunConfig, plan: Plan, layers: Sequence[LayerSize]) -> Iterator[Message]:
    """It yields those of tensor-parallel ranks, as the outline has them, for every micro-batch."""
    if plan.tensor == 1:
        return
    size, batch = DTYPE_BYTES[config.precision.dtype], plan.batch
    for collective in (collective for layer in layers for collective in layer.collectives):
        number = FP32_BYTES if collective.wide else size
        yield Message(
            "tensor",
            collective.kind,
            round(batch.micro * collective.numbers) * number,
            collective.times * batch.accumulation,
            batch.micro * collective.beside / plan.tensor,
        )


def pipeline_messages(config: RunConfig, plan: Plan, outline: Outline, index: int) -> Iterator[Message]:
    """It yields what a stage sends to its neighbours and receives: b e x stream, forward and back, for every
    micro-batch.

    Where DeepSpeed cuts it over tensor-parallel ranks, they gather what was received, and what was sent once more in
    the backward pass.
    """
    stages, micro_batches = plan.pipeline, plan.batch.accumulation
    whole = plan.batch.micro * outline.stream * DTYPE_BYTES[config.precision.dtype]
    cut = plan.tensor > 1 and plan.deepspeed.get("pipeline", {}).get("pipe_partitioned", True)
    size = whole // plan.tensor if cut else whole
    before, behind = index > 0, index < stages - 1
    yield Message("pipeline", "send", size, micro_batches * (before + behind))
    yield Message("pipeline", "receive", size, micro_batches * (before + behind))
    if cut:
        yield Message("tensor", "all_gather", whole, micro_batches * (before + 2 * behind))


def tied_messages(
    config: RunConfig, plan: Plan, outline: Outline, boundaries: Sequence[int], index: int
) -> Iterator[Message]:
    """It yields the sums of gradients of tables that stages share."""
    for table in outline.tables:
        stages = {stage_of(layer, boundaries) for layer in outline.sharers(table)}
        if index in stages and len(stages) > 1:
            weight = next(p for p in outline.layers[table].parameters if p.name == "weight")
            size = FP32_BYTES if plan.zero_stage else DTYPE_BYTES[config.precision.dtype]
            yield Message("tied", "all_reduce", size * weight.size_per_rank(plan.tensor), 1)


def data_messages(
    config: RunConfig, plan: Plan, layers: Sequence[LayerSize], stage: Stage
) -> Iterator[Message]:
    """It yields those of data-parallel ranks, as DeepSpeed (0.19.8) has them: e P numbers are reduced once a step, with
    ZeRO-2 and 3 for every micro-batch, and with ZeRO-1 and 2 gathered after the update.

    ZeRO-1 and 2 reduce by all-reduces, of which a rank then keeps its share, not by reduce-scatters.
    """
    if plan.data == 1:
        return
    size, numbers = DTYPE_BYTES[config.precision.dtype], stage.parameters
    zero = plan.deepspeed["zero_optimization"]
    bucket = LARGEST_BUCKET if plan.zero_stage == 0 else int(zero["reduce_bucket_size"])
    times = plan.batch.accumulation if plan.zero_stage >= 2 else 1
    kind: Kind = "reduce_scatter" if plan.zero_stage == 3 else "all_reduce"
    yield in_buckets(kind, size, numbers, bucket, times)
    if plan.zero_stage in (1, 2):
        vectors = sum(
            parameter.size_per_rank(plan.tensor)
            for layer in layers
            for parameter in layer.parameters
            if len(parameter.shape) == 1
        )
        yield Message("data", "all_gather", size * (numbers - vectors), 1)
        yield Message("data", "all_gather", size * vectors, 1 if vectors else 0)
    if plan.zero_stage == 3:
        yield from gathered_weights(plan, layers, size, zero)


def gathered_weights(
    plan: Plan, layers: Sequence[LayerSize], size: int, zero: dict[str, Any]
) -> Iterator[Message]:
    """ZeRO-3 gathers small parameters after the update, one by one, and large ones for every micro-batch: before its
    forward pass, and, those that are not to be used again soon enough to be kept, before its backward pass."""
    threshold, reuse, prefetch = (int(zero.get(key, default)) for key, default in ZERO_3_DEFAULTS.items())
    held = [p.size_per_rank(plan.tensor) for layer in layers for p in layer.parameters]
    for count in held:
        if count <= threshold:
            yield Message("data", "all_gather", size * count, 1)
    large = sum(count for count in held if count > threshold)
    for count in (large, max(large - reuse // 2, 0)):
        # Without prefetching those of a module go at once: as if all did.
        yield in_buckets("all_gather", size, count, prefetch or large, plan.batch.accumulation)


def in_buckets(kind: Kind, size: int, numbers: int, bucket: int, times: int) -> Message:
    """It returns `numbers` numbers of `size` bytes, of which `bucket` go at once, in equal messages."""
    count = max(ceil(numbers / max(bucket, 1)), 1)
    return Message("data", kind, size * numbers // count, count * times if numbers else 0)


def spectral_messages(plan: Plan, layers: Sequence[LayerSize]) -> Iterator[Message]:
    """sigmaReparam has an all-reduce of vectors for the power steps of all matrices, and one of a number for each
    matrix for the gradients, which with ZeRO lie on data-parallel ranks, too; `sigma_stats_only` has but the first."""
    bases = [b.shape for layer in layers for b in layer.buffers if b.name.endswith("basis_KRV")]
    sharded = plan.data > 1 and plan.zero_stage > 0
    matrices = FP32_BYTES * sum(shape[0] for shape in bases)
    vectors = FP32_BYTES * sum(prod(shape) + shape[0] * shape[2] ** 2 for shape in bases)
    if plan.tensor > 1:
        yield Message("tensor", "all_reduce", vectors, 1 if bases else 0)
    if plan.tensor > 1 or sharded:
        axis: Axis = "tensor" if not sharded else "data" if plan.tensor == 1 else "stage"
        yield Message(axis, "all_reduce", matrices, 1 if bases else 0)
