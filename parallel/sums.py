"""What ranks hold is reduced in place, and summed over tensor-parallel ranks in ways that a compiler can look into.

Uncompiled, sums run beside products and are waited for by their handles, of which a graph knows nothing.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def all_reduced(values: Tensor, group: ProcessGroup, operation: Any = dist.ReduceOp.SUM) -> Tensor:
    """It reduces `values` in place over the ranks of a group, and returns them; one rank alone calls no collective.

    A thread of gloo gives back what it was passed a moment after the collective has ended, for which it takes Python's
    lock (torch 2.10 to 2.13): a command whose process ends just then is aborted.
    """
    if group.size() > 1:
        dist.all_reduce(values, op=operation, group=group)
    return values


class _SummedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total, None


class _SumOfRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def summed_gradient(x: Tensor, group: ProcessGroup) -> Tensor:
    """It returns `x`, which all ranks have; its gradient is the sum of those of all ranks."""
    y: Tensor = _SummedGradient.apply(x, group)
    return y


def sum_of_ranks(x: Tensor, group: ProcessGroup) -> Tensor:
    """It returns the sum of what the ranks have; each has its gradient."""
    y: Tensor = _SumOfRanks.apply(x, group)
    return y
