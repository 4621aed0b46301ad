"""This module estimates how long a step takes from declared rates of devices and links, and what bounds it.

It is arithmetic, not a measurement. What runs on a device runs one after the other: products of matrices at a fraction
of the peak, all else at a fraction of the memory's bandwidth, messages between them. Beside products run the sums of
gradients that tensor-parallel layers begin before the product for the gradient of their weight, and all messages of
ZeRO-3 between data-parallel ranks, which DeepSpeed overlaps by default; nothing else. Not counted: what the host needs
to launch kernels, methods' and probes' own arithmetic, reading data, checkpoints, validation, and ranks that wait for a
slow one. A sharpness-aware step takes two passes; what is told here is of an ordinary one.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, log2

from parallel.level_sizes import hops
from pretrain.config.run import RunConfig
from pretrain.models.outline import LayerSize
from pretrain.plan.devices import DeviceRates
from pretrain.plan.memory import DTYPE_BYTES, FP32_BYTES, whole_bytes
from pretrain.plan.plan import Plan
from pretrain.plan.traffic import AGREEMENTS, Axis, Message, step_traffic

FORWARD_MOVES, BACKWARD_MOVES = 2, 4
"""Times that a number which is kept for the backward pass crosses the memory's bus outside of products of matrices, in
kernels that are not fused: forward it is written and read; backward it is read, its gradient written and read, and
about once more for biases, residuals and casts. The kernels of a GPT's block come to that."""
HOST_SECONDS = 0.0035
"""That the only host seen so far took to launch the kernels of a block for a micro-batch, forward and backward, eagerly
and without methods (docs/performance.md). Where a device needs less, hosts may well be what a step waits for."""
GRADIENT_MOVES = 4
"""The optimizer's gradients in fp32 are read for the norm, read and written for clipping, read for the update."""


@dataclass(frozen=True)
class StepTime:
    """It divides the seconds of a step of the slowest pipeline stage by what they go to."""

    compute: float
    """Products of matrices, those that are recomputed included."""
    memory: float
    """All else on the device: norms, activations, loss, sums of gradients, optimizer."""
    tensor: float
    """Messages of tensor-parallel ranks."""
    pipeline: float
    """Messages between pipeline stages."""
    bubble: float
    """Waiting for other stages."""
    data: float
    """Messages of data-parallel ranks."""
    agreement: float
    """All ranks agree on the step, over gloo."""

    @property
    def total(self) -> float:
        """It adds all of them up."""
        return sum(asdict(self).values())

    @property
    def bound(self) -> str:
        """It names what takes longest."""
        parts = asdict(self)
        return max(parts, key=lambda name: parts[name])


def step_time(config: RunConfig, plan: Plan, device: DeviceRates) -> StepTime:
    """It estimates a step.

    A micro-batch passes through all stages once; each further one comes as far behind as the slowest stage takes for
    it, forward and backward (1F1B, as DeepSpeed schedules it).
    """
    outline, links = config.model.outline(config.data), Links(device, plan)
    stages = [
        stage_time(
            config,
            plan,
            links,
            outline.layers[stage.first_layer : stage.last_layer],
            stage.parameters,
            messages,
        )
        for stage, messages in zip(plan.stages, step_traffic(config, plan), strict=True)
    ]
    slowest = max(stages, key=lambda stage: stage.passes)
    last = max(stages, key=lambda stage: stage.update + stage.data)
    return StepTime(
        compute=slowest.compute,
        memory=slowest.memory + last.update,
        tensor=slowest.tensor,
        pipeline=slowest.pipeline,
        bubble=(sum(stage.passes for stage in stages) - slowest.passes) / plan.batch.accumulation,
        data=last.data,
        agreement=AGREEMENTS * hops(plan.world_size) * device.host_microseconds / 1e6,
    )


def block_seconds(plan: Plan, time: StepTime) -> float:
    """It returns about how long a device takes for a block and a micro-batch, forward and backward."""
    return (time.compute + time.memory) / plan.batch.accumulation / max(stage.blocks for stage in plan.stages)


def utilisation(config: RunConfig, plan: Plan, device: DeviceRates, seconds: float) -> float:
    """It returns the model FLOP utilisation, as a fraction of 1 (MFU, arXiv 2204.02311 appendix B)."""
    flops = plan.flops_per_token * plan.batch.tokens / plan.world_size
    return flops / seconds / device.flops_per_second(config.precision.dtype)


@dataclass(frozen=True)
class StageTime:
    """It divides the seconds that a rank of a stage is at work in a step."""

    compute: float
    memory: float
    """Of forward and backward passes."""
    tensor: float
    pipeline: float
    update: float
    """Memory traffic of the optimizer."""
    data: float

    @property
    def passes(self) -> float:
        """It is what takes place in forward and backward passes, of all micro-batches."""
        return self.compute + self.memory + self.tensor + self.pipeline


def stage_time(
    config: RunConfig,
    plan: Plan,
    links: "Links",
    layers: Sequence[LayerSize],
    parameters: int,
    messages: Sequence[Message],
) -> StageTime:
    """It estimates a stage with these layers, so many parameters on a rank, and messages."""
    times, rate = plan.batch.accumulation, links.device.flops_per_second(config.precision.dtype)
    rate *= links.device.matmul_efficiency
    bandwidth = 1e9 * links.device.memory_gb_per_second * links.device.bandwidth_efficiency
    compute = times * sum(layer_flops(config, plan, layer) for layer in layers) / rate
    moved = sum(moved_bytes(config, layer) for layer in layers) + accumulated_bytes(config, parameters)
    by_axis = dict.fromkeys(("tensor", "pipeline", "tied", "data", "stage"), 0.0)
    for message in messages:
        beside = message.beside / rate
        by_axis[message.axis] += message.times * max(links.seconds(message) - beside, 0.0)
    data = by_axis["data"] + by_axis["stage"]
    return StageTime(
        compute=compute,
        memory=times * moved / bandwidth,
        tensor=by_axis["tensor"],
        pipeline=by_axis["pipeline"] + by_axis["tied"],
        update=update_bytes(config, parameters, plan.data) / bandwidth,
        data=max(data - compute, 0.0) if plan.zero_stage == 3 else data,
    )


def layer_flops(config: RunConfig, plan: Plan, layer: LayerSize) -> float:
    """It counts the FLOPs of one rank for a micro-batch; a layer that is recomputed passes forward twice."""
    own = (layer.flops - layer.repeated_flops) / plan.tensor + layer.repeated_flops
    again = 4 / 3 if layer.activations.input is not None else 1
    return plan.batch.micro * again * own


def moved_bytes(config: RunConfig, layer: LayerSize) -> float:
    """It counts the memory traffic of a layer's activations for a micro-batch."""
    again = FORWARD_MOVES if layer.activations.input is not None else 0
    return (FORWARD_MOVES + BACKWARD_MOVES + again) * whole_bytes(config, layer.activations)


def accumulated_bytes(config: RunConfig, parameters: int) -> int:
    """It counts the memory traffic of gradients that are added to those of earlier micro-batches: in fp32 under ZeRO,
    else in the compute dtype."""
    size = DTYPE_BYTES[config.precision.dtype]
    return parameters * (size + 2 * (FP32_BYTES if config.parallel.zero_stage else size))


def update_bytes(config: RunConfig, parameters: int, data: int) -> float:
    """It counts the memory traffic of the optimizer: its state and fp32 weights are read and written, gradients are
    read, and weights in the compute dtype are written."""
    share = parameters / (data if config.parallel.zero_stage else 1)
    states = len(config.optimizer.state) + 1
    return share * (FP32_BYTES * (2 * states + GRADIENT_MOVES) + DTYPE_BYTES[config.precision.dtype])


class Links:
    """It tells how long messages take between ranks that lie as the mesh has them: tensor-parallel ones next to each
    other, then replicas, then stages."""

    def __init__(self, device: DeviceRates, plan: Plan) -> None:
        self.device = device
        tensor, data = plan.tensor, plan.data
        self._groups: dict[Axis, tuple[int, int]] = {
            "tensor": (tensor, 1),
            "data": (data, tensor),
            "stage": (tensor * data, 1),
            "pipeline": (2, tensor * data),
            "tied": (2, (plan.pipeline - 1) * tensor * data),
        }
        """Ranks of a group, and how far they are from each other."""

    def seconds(self, message: Message) -> float:
        """A ring moves data, its ranks of a node by as many network adapters as they are. Sums of little data go by a
        tree, 2 log2(n) hops; gathering and scattering by the ring, n - 1."""
        device, (ranks, stride) = self.device, self._groups[message.axis]
        together = max(min(ranks, device.gpus_per_node // stride), 1)
        nodes = ceil(ranks / together)
        bandwidth = device.link_gb_per_second
        if nodes > 1:
            bandwidth = min(bandwidth, together * device.network_gb_per_second)
        shares, within, beyond = {
            "all_reduce": (2 * (ranks - 1) / ranks, 2 * ceil(log2(together)), 2 * ceil(log2(nodes))),
            "all_gather": ((ranks - 1) / ranks, ranks - nodes, nodes - 1),
            "reduce_scatter": ((ranks - 1) / ranks, ranks - nodes, nodes - 1),
            "send": (1.0, ranks - nodes, nodes - 1),
            "receive": (1.0, ranks - nodes, nodes - 1),
        }[message.kind]
        latency = within * device.link_microseconds + beyond * device.network_microseconds
        return shares * message.bytes / (1e9 * bandwidth * device.bandwidth_efficiency) + latency / 1e6
