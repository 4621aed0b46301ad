"""This module estimates the memory that a rank needs, in bytes.

Model states follow Rajbhandari et al. 2020 (ZeRO, arXiv 1910.02054, sections 3.1 and 5); activations are those of the
outline. Buffers of NCCL, fragmentation and the accelerator's context are not counted; together they are about 1 GB.

b  samples in a micro-batch   e  bytes of a number in the compute dtype
t  tensor-parallel size       d  data-parallel size
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.config.run import RunConfig
from pretrain.models.outline import ActivationSize, LayerSize

FP32_BYTES = 4
DTYPE_BYTES = {"fp32": 4, "bf16": 2}
"""Bytes of one number in each compute dtype."""

SHARPNESS_COPIES = 10
"""Vectors as long as the weights that a look at sharpness has: of its basis, gradients, a copy of the weights."""
LARGEST_BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at once: its default for `reduce_bucket_size`, and fixed without ZeRO."""


@dataclass(frozen=True)
class MemoryEstimate:
    """It estimates the bytes on one rank at the peak of a step."""

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    """Gradients on their way to the other ranks."""
    activations: int

    @property
    def total(self) -> int:
        """It adds all of them up."""
        return self.weights + self.gradients + self.optimizer + self.buckets + self.activations


def weight_bytes(config: RunConfig, parameters: int, data: int) -> int:
    """Weights take e bytes a parameter, divided by d under ZeRO-3."""
    share = data if config.parallel.zero_stage == 3 else 1
    return DTYPE_BYTES[config.precision.dtype] * parameters // share


def gradient_bytes(config: RunConfig, parameters: int, data: int) -> int:
    """Gradients take 4 bytes a parameter (e without ZeRO, which cannot accumulate in fp32), divided by d under ZeRO-2
    and 3."""
    stage = config.parallel.zero_stage
    size = FP32_BYTES if stage else DTYPE_BYTES[config.precision.dtype]
    return size * parameters // (data if stage >= 2 else 1)


def optimizer_bytes(config: RunConfig, parameters: int, data: int) -> int:
    """The optimizer's state and master weights are in fp32, divided by d under ZeRO; plain fp32 needs no master
    weights. The second pass of a sharpness-aware step needs a copy of what is moved, a look at sharpness
    SHARPNESS_COPIES."""
    stage = config.parallel.zero_stage
    masters = 0 if stage == 0 and config.precision.dtype == "fp32" else 1
    ascent = 1 if config.optimizer.sharpness_aware.among(config.run.steps) else 0
    looks = SHARPNESS_COPIES if config.probes.sharpness else 0
    copies = len(config.optimizer.state) + masters + ascent + looks
    return copies * FP32_BYTES * parameters // (data if stage else 1)


def bucket_bytes(
    config: RunConfig, zero: Mapping[str, Any], parameters: int, data: int, activations: int
) -> int:
    """DeepSpeed (0.19.8) copies gradients before it reduces them over data ranks; what this takes at the peak.

    ZeRO has buffers for `reduce_bucket_size` numbers beside the backward pass, of 4 bytes under ZeRO-1 and else of e:
    one, or two where ZeRO-1 and 2 are to overlap reduction and backward pass, or where ZeRO-1 follows a pipeline.

    Without ZeRO, and with bf16 under ZeRO-1, gradients are joined after the backward pass, 5e8 numbers at once, and
    reduced in the compute dtype: in the memory of `activations`, so that only what goes beyond those counts. A single
    data rank joins none, and rounds those of bf16 under ZeRO-1 alone.

    `zero` is what DeepSpeed is given as `zero_optimization`.
    """
    stage, size = config.parallel.zero_stage, DTYPE_BYTES[config.precision.dtype]
    if stage == 0:
        return max(size * min(parameters, LARGEST_BUCKET) - activations, 0) if data > 1 else 0
    if (
        stage == 1 and size < FP32_BYTES
    ):  # biases and gains are one tensor, matrices the other, which may be too large
        joined = FP32_BYTES if parameters <= LARGEST_BUCKET and data > 1 else 0
        return max((joined + size) * parameters - activations, 0)
    if not zero.get("contiguous_gradients", True):
        return 0
    twice = stage < 3 and (zero.get("overlap_comm", False) or config.parallel.pipeline > 1)
    return (2 if twice else 1) * (FP32_BYTES if stage == 1 else size) * int(zero["reduce_bucket_size"])


def activation_bytes(config: RunConfig, layers: Sequence[LayerSize], micro_batches: int) -> int:
    """It estimates the activations of a stage with these layers that keeps `micro_batches` micro-batches in flight.

    A layer that is recomputed keeps only its input, and one such layer at a time is whole. The logits of a head are
    kept of one micro-batch.
    """
    blocks = [layer.activations for layer in layers if layer.is_block]
    kept = sum(micro_batches * kept_bytes(config, block) for block in blocks)
    recomputed = (whole_bytes(config, block) for block in blocks if block.input is not None)
    others = sum(whole_bytes(config, layer.activations) for layer in layers if not layer.is_block)
    return kept + max(recomputed, default=0) + others


def kept_bytes(config: RunConfig, layer: ActivationSize) -> int:
    """A layer keeps of one micro-batch for its backward pass all, or only its input where it is recomputed."""
    if layer.input is None:
        return whole_bytes(config, layer)
    return round(config.data.micro_batch_size * layer.input * DTYPE_BYTES[config.precision.dtype])


def whole_bytes(config: RunConfig, layer: ActivationSize) -> int:
    """All that a layer computes with takes, of one micro-batch, b (e (whole + sharded / t) + masks + 4 wide / t)."""
    tensor = config.parallel.tensor
    numbers = (layer.whole + layer.sharded / tensor) * DTYPE_BYTES[config.precision.dtype]
    return round(config.data.micro_batch_size * (numbers + layer.masks + FP32_BYTES * layer.wide / tensor))
