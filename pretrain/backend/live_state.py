"""All that training changes on a rank is seen here as one tree of tensors and plain values: where it lies in
DeepSpeed's engines, how it is put back in place, and summed up.

| precision, ZeRO | weights of the model        | what the base optimizer moves, and keys its moments by  |
|-----------------|-----------------------------|---------------------------------------------------------|
| fp32, 0         | parameters                  | the parameters themselves                               |
| bf16 or ZeRO    | parameters                  | fp32 masters in its param_groups; with ZeRO, flat shards|
| any, 3          | this rank's shards          | flat shards; param_groups are empty between steps       |

It is complete at the boundary between two steps, where there are no gradients.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from pretrain.backend.host_copy import tensors_of
from pretrain.models.named import persistent_buffers

Tree = dict[str, Any]
COUNTERS = ("global_steps", "global_samples", "skipped_steps")
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> the integers that have its bit patterns."""


def live_state(engine: DeepSpeedEngine, optimizer: torch.optim.Optimizer) -> Tree:
    """It returns references, not copies, to the state of an engine and its base optimizer, in a fixed order."""
    parameters = list(engine.module.parameters())
    moved = moved_tensors(engine, optimizer)
    own = {id(parameter) for parameter in parameters}
    return {
        "weights": [getattr(parameter, "ds_tensor", parameter) for parameter in parameters],
        "buffers": [buffer for _, buffer in persistent_buffers(engine.module)],
        "masters": [master for master in moved if id(master) not in own],
        "moments": [dict(optimizer.state.get(master, {})) for master in moved],
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "counters": {name: getattr(engine, name) for name in COUNTERS},
        "scale": dict(vars(engine.optimizer.loss_scale_config)) if is_unfused(engine) else {},
    }


@torch.no_grad()
def restore_state(engine: DeepSpeedEngine, optimizer: torch.optim.Optimizer, saved: Tree) -> None:
    """It puts a copy of an earlier `live_state` back in place; with ZeRO-3 all data ranks must do so together."""
    live = live_state(engine, optimizer)
    for part in ("weights", "buffers", "masters"):
        for tensor, value in zip(live[part], saved[part], strict=True):
            tensor.copy_(value)
    for master, moments in zip(moved_tensors(engine, optimizer), saved["moments"], strict=True):
        _restore_moments(optimizer, master, moments)
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        parameters = group["params"]
        group.clear()
        group.update(values, params=parameters)
    for name, value in saved["counters"].items():
        setattr(engine, name, value)
    if is_unfused(engine):
        vars(engine.optimizer.loss_scale_config).update(saved["scale"])
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        renew_persistent(engine.optimizer)


def moved_tensors(engine: DeepSpeedEngine, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """It returns the tensors that the base optimizer moves."""
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return moved_tensors_of(optimizer)


def moved_tensors_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """It returns the tensors in an optimizer's groups."""
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def _restore_moments(optimizer: torch.optim.Optimizer, master: Tensor, moments: Tree) -> None:
    if not moments:  # the copy is from before the first update
        optimizer.state.pop(master, None)
        return
    held = optimizer.state[master]
    for name, value in moments.items():
        if isinstance(value, Tensor):
            held[name].copy_(value)
        else:
            held[name] = value


def is_unfused(engine: DeepSpeedEngine) -> bool:
    """It tells whether the wrapper is the one that counts its steps."""
    return isinstance(engine.optimizer, FP16_UnfusedOptimizer)


def renew_persistent(optimizer: DeepSpeedZeroOptimizer_Stage3) -> None:
    """It gathers small parameters from the shards again: they stay whole on every rank between steps."""
    optimizer.invalidate_secondary_tensor()
    if parameters := optimizer.persistent_parameters:
        parameters[0].partition(parameters)
        parameters[0].all_gather(parameters)


@contextmanager
def uncounted(engine: DeepSpeedEngine) -> Iterator[None]:
    """What runs within it, DeepSpeed does not count as a step."""
    counters = {name: getattr(engine, name) for name in COUNTERS}
    yield
    for name, value in counters.items():
        setattr(engine, name, value)


def checksum(state: Tree) -> int:
    """It hashes the sums of the bit patterns of all tensors, in order, to 63 bits: no two may be exchanged."""
    sums = [_bit_sum(tensor) for tensor in tensors_of(state)]
    return int.from_bytes(hashlib.sha256(repr(sums).encode()).digest()[:8]) >> 1


def _bit_sum(tensor: Tensor) -> int:
    """It sums a tensor's bytes in words of 64 bits, modulo 2^64: 25 times as fast on a CPU as elements that are widened
    first. The last elements, if they fill no word, are added one by one."""
    flat = tensor.detach().reshape(-1)
    a_word = 8 // tensor.element_size()
    if flat.storage_offset() % a_word:
        flat = flat.clone()
    whole = len(flat) // a_word * a_word
    words = flat[:whole].view(torch.int64).sum()
    rest = flat[whole:].view(INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)
    return int((words + rest).item())
