"""Each data-parallel rank takes a share of every global batch, and cuts it into micro-batches."""

from collections.abc import Iterator, Sequence

import numpy as np

from data_pipeline.config import DataConfig
from data_pipeline.reading.buckets import Integers
from data_pipeline.shards.dataset import Sample


class BatchShare:
    """It is one rank's share. Raises ValueError for a global batch that cannot be cut evenly."""

    def __init__(self, data: DataConfig, rank: int, size: int) -> None:
        if data.global_batch_size % (data.micro_batch_size * size):
            raise ValueError(
                f"global_batch_size {data.global_batch_size} is no multiple of micro_batch_size "
                f"{data.micro_batch_size} x {size} data-parallel ranks"
            )
        self._rank = rank
        self._size = size
        self._micro_batch = data.micro_batch_size

    def of(self, global_batch: Integers) -> Integers:
        """It returns this rank's part: each rank takes every `size`-th sample."""
        return global_batch[self._rank :: self._size]

    def together(self, order: Integers) -> Integers:
        """It returns a global batch so that neighbours in `order` come to lie in one micro-batch of one rank, and what
        follows it is read by the other ranks at the same time: they do not wait for the longest of all.

        That of the middle comes first, on rank 0, however many there are: probes look at the first one alone.
        """
        groups = order.reshape(-1, self._size, self._micro_batch)
        group, rank = divmod(groups.shape[0] * self._size // 2, self._size)
        return np.roll(groups, (-group, -rank), axis=(0, 1)).swapaxes(1, 2).reshape(-1)

    def micro_batches(self, samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
        """It cuts this rank's part of a global batch."""
        for start in range(0, len(samples), self._micro_batch):
            yield samples[start : start + self._micro_batch]
