"""What DeepSpeed does to one parameter after the other around an update is done to all of them at once here.

Seen in 0.19.8. Its wrappers for bf16 look at each gradient for overflow, for which the host waits each time, and take
its norm: the verdict and the norm of a step are ours (`UpdateGate`). They cast and add up gradients one by one, and
clear them with zeros, to which the next ones are added. With one data-parallel rank gradients are copied into a buffer
and back, to be averaged with none. What comes out here is the same to the bit.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from torch import Tensor, nn

from parallel.mesh import ParallelMesh


def update_at_once(engine: DeepSpeedEngine, mesh: ParallelMesh) -> None:
    """It replaces methods of an engine and of its optimizer; it comes before an `UpdateGate` is made."""
    optimizer = engine.optimizer
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        optimizer.step = partial(_step_masters, optimizer)
    elif isinstance(optimizer, BF16_Optimizer):
        optimizer.step = partial(_step_partitions, optimizer)
        optimizer.update_hp_grads = partial(_accumulate, optimizer)
    if mesh.data.size == 1:
        engine.allreduce_and_copy = partial(_reduce_alone, engine)
    engine.zero_grad = partial(_forget_gradients, list(engine.module.parameters()))


@torch.no_grad()
def _step_masters(optimizer: FP16_UnfusedOptimizer) -> None:
    """Without ZeRO a bf16 model has fp32 masters of its parameters, each a tensor of its own."""
    groups = list(zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True))
    for parameters, masters in groups:
        _give_gradients(parameters, masters)
    optimizer._update_scale(False)  # it counts updates
    optimizer.optimizer.step()
    for parameters, masters in groups:
        torch._foreach_copy_(parameters, masters)
        for master in masters:
            master.grad = None


def _give_gradients(parameters: Sequence[nn.Parameter], masters: Sequence[Tensor]) -> None:
    """Masters get the gradients of their parameters in fp32, zero where there is none."""
    copies, gradients = [], []
    for parameter, master in zip(parameters, masters, strict=True):
        if parameter.grad is None:
            master.grad = torch.zeros_like(master)
        else:
            master.grad = torch.empty_like(master)
            copies.append(master.grad)
            gradients.append(parameter.grad)
    if copies:
        torch._foreach_copy_(copies, gradients)


@torch.no_grad()
def _step_partitions(optimizer: BF16_Optimizer) -> None:
    """With ZeRO-1 masters and summed gradients are flat; the engine clears the gradients afterwards."""
    flat = zip(
        optimizer.fp32_groups_flat_partition, optimizer.fp32_groups_gradient_flat_partition, strict=True
    )
    for masters, gradients in flat:
        masters.grad = gradients.to(masters.dtype)
    optimizer.optimizer.step()
    optimizer._lazy_init_hp_params_optimizer_state()
    optimizer.update_lp_params()


@torch.no_grad()
def _accumulate(optimizer: BF16_Optimizer, clear_lp_grads: bool = False) -> None:
    """It adds the gradients of a micro-batch to the sums in fp32, and lets go of them."""
    sums, gradients = [], []
    for group, parameters in enumerate(optimizer.bf16_groups):
        for index, parameter in enumerate(parameters):
            if parameter.grad is None:
                continue
            parameter._hp_grad = optimizer.fp32_groups_gradients[group][
                index
            ]  # a pipeline sums that of tied ones
            optimizer.fp32_groups_has_gradients[group][index] = True
            sums.append(parameter._hp_grad)
            gradients.append(parameter.grad.view(-1))
            parameter.grad = None
    if sums:
        torch._foreach_add_(sums, gradients)


def _forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """The engine would look for its parameters in all modules, each time anew."""
    for parameter in parameters:
        parameter.grad = None


def _reduce_alone(engine: DeepSpeedEngine, bucket: Sequence[Tensor], *_: Any, **__: Any) -> None:
    """Of one data-parallel rank the mean over all is its own gradient, rounded as if it had been sent."""
    for gradient in bucket:
        if gradient.dtype != engine.communication_data_type:
            gradient.copy_(gradient.to(engine.communication_data_type))
