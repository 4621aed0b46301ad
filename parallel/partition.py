"""Pure arithmetic says where layers are cut into pipeline stages, and tensors into shares of tensor-parallel ranks."""

from collections.abc import Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """It is a run of indices along one dimension."""

    start: int
    length: int


def share_runs(stacked: Sequence[int], rank: int, size: int) -> list[Run]:
    """It returns what one of `size` ranks holds of a dimension along which blocks of these lengths are stacked: its
    share of each, in order.

    It raises ValueError where a block does not divide.
    """
    runs, first = [], 0
    for length in stacked:
        share, rest = divmod(length, size)
        if rest:
            raise ValueError(f"{length} rows or columns cannot be divided by {size} ranks")
        runs.append(Run(first + rank * share, share))
        first += length
    return runs


def partition_layers(is_block: Sequence[bool], stages: int) -> tuple[int, ...]:
    """It returns the boundaries of the stages in a list of layers, of which `is_block` tells the blocks.

    They are `stages + 1` increasing indices; stage i owns the layers `[boundaries[i], boundaries[i + 1])`. Blocks are
    spread evenly and the first stages take what does not divide, for the last one also computes head and loss. What
    precedes the blocks stays with the first stage, what follows a block with the stage of that block.
    It raises ValueError when there are fewer blocks than stages.
    """
    blocks = [index for index, block in enumerate(is_block) if block]
    if not 1 <= stages <= len(blocks):
        raise ValueError(f"{len(blocks)} blocks cannot be cut into {stages} stages with a block in each")
    share, remainder = divmod(len(blocks), stages)
    inner = [blocks[stage * share + min(stage, remainder)] for stage in range(1, stages)]
    return (0, *inner, len(is_block))
