"""What ranks send each other: every call of a process group, whoever makes it.

`torch.distributed`'s functions, those that DeepSpeed and Megatron-core have kept since they were imported and those
that a backward pass calls all end at methods of `ProcessGroup`, which are wrapped here.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed import ProcessGroup

KINDS = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "allgather": "all_gather",
    "allgather_coalesced": "all_gather",
    "_allgather_base": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "all_gather_single": "all_gather",
    "all_gather_single_coalesced": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "reduce_scatter_single": "reduce_scatter",
    "reduce_scatter_single_coalesced": "reduce_scatter",
    "reduce": "reduce",
    "broadcast": "broadcast",
    "send": "send",
    "recv": "receive",
    "recv_anysource": "receive",
    "gather": "gather",
    "scatter": "scatter",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all",
    "all_to_all_single": "all_to_all",
    "barrier": "barrier",
}


@dataclass(frozen=True)
class Call:
    """It is one call of this rank."""

    kind: str
    bytes: int
    """Of the largest of what goes in and what comes out: the whole of what ranks gather or scatter."""
    group: str
    """Name of the group."""
    ranks: tuple[int, ...]


def tensors_in(argument: Any) -> Iterator[torch.Tensor]:
    if isinstance(argument, torch.Tensor):
        yield argument
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from tensors_in(part)


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Within it, calls of this rank are noted in the list, in order; those of groups of one rank are left out."""
    calls: list[Call] = []

    def noting(name: str) -> Any:
        original = getattr(ProcessGroup, name)

        def call(group: ProcessGroup, *arguments: Any, **options: Any) -> Any:
            if group.size() > 1:
                sizes = [
                    sum(t.numel() * t.element_size() for t in tensors_in(argument))
                    for argument in (*arguments, *options.values())
                ]
                ranks = tuple(torch.distributed.get_process_group_ranks(group))
                calls.append(Call(KINDS[name], max(sizes, default=0), group.group_name, ranks))
            return original(group, *arguments, **options)

        return call

    with ExitStack() as patches:
        for name in filter(partial(hasattr, ProcessGroup), KINDS):
            patches.enter_context(patch.object(ProcessGroup, name, noting(name)))
        yield calls
