"""Copies of state lie in host memory that is used again and again: a run waits for them, a thread writes them to disk.

Memory that was never touched costs more than the copy; hence it is kept from one copy to the next.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch import Tensor

from pretrain.runtime.units import in_units

Place = tuple[int, torch.Size, tuple[int, ...], torch.dtype]
"""Address, shape, strides and type: what two names of one tensor have in common."""


class HostCopies:
    """It copies trees of tensors and plain values, such as `torch.save` takes.

    A copy is good until its name is taken again. What the tree holds under two names, such as tied weights, it holds
    once.
    """

    def __init__(self) -> None:
        self._earlier: dict[str, Any] = {}

    def take(self, name: str, state: Any) -> Any | None:
        """It returns a copy of `state`; None where host memory has no room for it, or gives none.

        Copies from a device may still be under way when it returns: synchronise.
        """
        if name not in self._earlier and not_enough_memory(sum(t.nbytes for t in tensors_of(state))):
            return None
        try:
            tree = copied(state, self._earlier.pop(name, None))
        except (RuntimeError, MemoryError):  # a limit of pinned memory, or of the container
            return None
        self._earlier[name] = tree
        return tree


def copied(value: Any, into: Any = None) -> Any:
    """It returns a deep copy of a tree in host memory, pinned if it comes from a device.

    What the tree holds under two names, such as tied weights, the copy holds once. Tensors of `into`, an earlier copy
    that is no longer needed, are written over where shape and type are the same. Copies from a device may still be
    under way when it returns: synchronise.
    """
    distinct = {id(tensor): tensor for tensor in tensors_of(into)}
    return _copied(value, {}, iter(distinct.values()))


def copied_tensor(tensor: Tensor, into: Tensor | None) -> Tensor:
    """It copies a tensor to host memory, pinned if it comes from a device; over `into` if shape and type agree."""
    if into is None or (into.shape, into.dtype) != (tensor.shape, tensor.dtype):
        into = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return into.copy_(tensor, non_blocking=True)


def not_enough_memory(needed: int) -> str:
    """It says so if host memory has no room for `needed` bytes for each device, else nothing: Linux hands out memory
    that it does not have, and then kills."""
    needed *= max(torch.cuda.device_count(), 1)
    free = psutil.virtual_memory().available
    if free > 2 * needed:
        return ""
    return f"{in_units(free)} of host memory are free, and {in_units(needed)} are needed"


def _copied(value: Any, taken: dict[Place, Tensor], spare: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        place = value.data_ptr(), value.shape, value.stride(), value.dtype
        if place not in taken:
            taken[place] = copied_tensor(value.detach(), next(spare, None))
        return taken[place]
    if isinstance(value, OrderedDict):
        ordered = OrderedDict((key, _copied(part, taken, spare)) for key, part in value.items())
        vars(ordered).update(vars(value))  # versions of modules
        return ordered
    if isinstance(value, dict):
        return {key: _copied(part, taken, spare) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(part, taken, spare) for part in value)
    return copy.copy(value)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """It yields all tensors in a tree, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)
