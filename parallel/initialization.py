"""Initial weights are the same for every layout.

A tensor is a pure function of (seed, name): its rows are drawn in blocks, each from a generator of its own,
so that a rank draws only the blocks that it holds and every layout cuts its shards out of the same matrix.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_PER_BLOCK = 256


def derive_seed(*parts: object) -> int:
    """It makes a 63-bit seed from anything that has an exact `str`: equal parts, equal seed, on every machine."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Normal:
    """The tensor called `name` has independent N(0, std^2) entries."""

    seed: int
    name: str
    std: float

    def rows(self, start: int, stop: int, num_rows: int, num_columns: int) -> Tensor:
        """It returns rows [start, stop) of the (num_rows, num_columns) matrix, fp32 on the CPU."""
        blocks = []
        for first in range(start - start % ROWS_PER_BLOCK, stop, ROWS_PER_BLOCK):
            size = min(ROWS_PER_BLOCK, num_rows - first)
            generator = torch.Generator().manual_seed(derive_seed(self.seed, self.name, first))
            block = torch.randn(size, num_columns, generator=generator)
            blocks.append(block[max(start - first, 0) : stop - first])
        return torch.cat(blocks).mul_(self.std)


@torch.no_grad()
def fill_rows(
    shard: Tensor, init: Normal, *, num_rows: int, start: int, valid_rows: int | None = None
) -> None:
    """Fill a shard that holds rows [start, start + len) of the full matrix; rows past `valid_rows` are zero."""
    stop = min(start + shard.shape[0], num_rows if valid_rows is None else valid_rows)
    shard.zero_()
    for first in range(start, stop, ROWS_PER_BLOCK):
        last = min(first + ROWS_PER_BLOCK, stop)
        shard[first - start : last - start].copy_(init.rows(first, last, num_rows, shard.shape[1]))


@torch.no_grad()
def fill_columns(shard: Tensor, init: Normal, *, num_columns: int, start: int) -> None:
    """Fill a shard that holds columns [start, start + width) of the full matrix, a block of rows at a time."""
    num_rows, width = shard.shape
    for first in range(0, num_rows, ROWS_PER_BLOCK):
        last = min(first + ROWS_PER_BLOCK, num_rows)
        shard[first:last].copy_(init.rows(first, last, num_rows, num_columns)[:, start : start + width])
