"""Tensors of one shape are computed with together, so that launches go by shape and not by tensor.

N  tensors that are taken together
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

_AT_ONCE = {"cpu": 2**18, "cuda": 2**26}
"""Elements that are taken together: where they have to be copied, the copies are to stay in a processor's cache, and on
a device to take little of its memory."""


def at_once(device: torch.device) -> int:
    """It returns how many elements are taken together on a device."""
    return _AT_ONCE["cpu" if device.type == "cpu" else "cuda"]


def by_kind(items: Iterable[Item], kind: Callable[[Item], Hashable]) -> list[list[Item]]:
    """It returns the items of each kind; kinds and items come in the order of the items."""
    kinds: dict[Hashable, list[Item]] = {}
    for item in items:
        kinds.setdefault(kind(item), []).append(item)
    return list(kinds.values())


def portions(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """It yields which of N large tensors of one shape may be taken together, at least one, in order."""
    count = max(at_once(tensors[0].device) // max(tensors[0].numel(), 1), 1)
    yield from (slice(first, first + count) for first in range(0, len(tensors), count))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """It returns (N, ...) of what was computed of portions."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def product(left_NAB: Tensor, right_NBC: Tensor) -> Tensor:
    """It returns the products of N pairs of matrices. One alone is no batch: of a batch torch (2.13) takes a CPU's
    threads for its matrices, of a product for its rows."""
    return left_NAB @ right_NBC if len(left_NAB) != 1 else (left_NAB[0] @ right_NBC[0])[None]


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """It returns tensors of one shape and dtype as one (N, ...).

    It is a view where they lie at even distances in one storage, as those of successive layers do in DeepSpeed's flat
    buffers, else a copy; `hand_out` takes what was changed there back to them.
    """
    if not lie_evenly(tensors):
        return torch.stack(list(tensors))
    first = tensors[0]
    step = tensors[1].data_ptr() - first.data_ptr() if len(tensors) > 1 else 0
    distance = step // first.element_size() or first.numel()
    return first.as_strided((len(tensors), *first.shape), (distance, *first.stride()))


def hand_out(stack: Tensor, tensors: Sequence[Tensor]) -> None:
    """It copies each of N tensors out of (N, ...), unless that is a view of them."""
    if stack.data_ptr() != tensors[0].data_ptr():
        torch._foreach_copy_(list(tensors), list(stack.unbind()))


def lie_evenly(tensors: Sequence[Tensor]) -> bool:
    """It tells whether tensors of one shape lie contiguous in one storage, at even distances."""
    first = tensors[0]
    if not first.is_contiguous():
        return False
    pointer, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    step = tensors[1].data_ptr() - pointer if len(tensors) > 1 else 0
    return step >= 0 and all(
        tensor.data_ptr() == pointer + number * step
        and tensor.untyped_storage().data_ptr() == storage
        and tensor.is_contiguous()
        for number, tensor in enumerate(tensors)
    )


def from_host(numbers: Sequence[int] | Sequence[float], device: torch.device, dtype: torch.dtype) -> Tensor:
    """It returns numbers of the host on a device, without waiting for what was launched there before."""
    tensor = torch.tensor(numbers, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
