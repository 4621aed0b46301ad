"""Faults of samples, by their draws.

B  samples in a micro-batch, S  tokens in a sequence
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from data_pipeline.batches import TokenBatch
from data_pipeline.reading.order import draws_at
from data_pipeline.reading.stream import BatchStream
from parallel.mesh import ParallelMesh
from pretrain.fault_injection.fault import PlannedFault
from pretrain.models.outline import Outline

Alteration = Callable[[TokenBatch, int, torch.Generator], TokenBatch]
"""(batch, row, a generator that the row's draw has seeded) -> the batch with that row altered."""


class AlteredStream:
    """A stream that alters the samples of some draws; for the rest it is the stream within."""

    def __init__(
        self, stream: BatchStream, mesh: ParallelMesh, batch_size: int, draws: range, alter: Alteration
    ) -> None:
        self._stream = stream
        self._mesh = mesh
        self._batch_size = batch_size
        self._draws = draws
        self._alter = alter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        return self

    def __next__(self) -> list[TokenBatch]:
        batches = next(self._stream)
        draws = iter(self._own_draws())
        return [self._altered(batch, [next(draws) for _ in range(batch.samples)]) for batch in batches]

    def _own_draws(self) -> list[int]:
        """Draws of this rank's samples in the step that was just handed out."""
        state = self._stream.state()
        positions = state["position"] - self._batch_size + np.arange(self._batch_size)
        draws = draws_at(positions, [(start, stop) for start, stop in state["skip"]])
        own: list[int] = draws[self._mesh.data.rank :: self._mesh.data.size].tolist()
        return own

    def _altered(self, batch: TokenBatch, draws: list[int]) -> TokenBatch:
        for row, draw in enumerate(draws):
            if draw in self._draws:
                batch = self._alter(batch, row, torch.Generator().manual_seed(draw))
        return batch


class SampleFault(PlannedFault):
    """Something is wrong with the samples that these steps have when nothing is skipped before them."""

    def wrap_batches(self, stream: BatchStream) -> BatchStream:
        size = self.config.data.global_batch_size
        first = (self.plan.step - 1) * size
        draws = range(first, first + self.plan.steps * size)
        altered = AlteredStream(stream, self.mesh, size, draws, self.alteration(stream))
        return cast(BatchStream, altered)

    @abstractmethod
    def alteration(self, stream: BatchStream) -> Alteration:
        """What is done to the samples of a stream."""


class PoisonedSamples(SampleFault):
    """Targets in an order of chance: inputs and frequencies stay, and what was to be learnt from them is gone."""

    def alteration(self, stream: BatchStream) -> Alteration:
        return shuffle_targets


class GarbageBatch(SampleFault):
    """Noise that has the shape of sound samples."""

    def alteration(self, stream: BatchStream) -> Alteration:
        ids = vocabulary_size(self.config.model.outline(self.config.data))

        def alter(batch: TokenBatch, row: int, generator: torch.Generator) -> TokenBatch:
            return randomise(batch, ids, row, generator)

        return alter


def shuffle_targets(batch: TokenBatch, row: int, generator: torch.Generator) -> TokenBatch:
    """The batch with the targets of one sample in an order of chance."""
    targets_BS = batch.targets_BS.clone()
    targets_BS[row] = targets_BS[row, torch.randperm(targets_BS.shape[1], generator=generator)]
    return replace(batch, targets_BS=targets_BS)


def randomise(batch: TokenBatch, ids: int, row: int, generator: torch.Generator) -> TokenBatch:
    """The batch with one sample of random tokens out of `ids`."""
    tokens_BS, targets_BS = batch.tokens_BS.clone(), batch.targets_BS.clone()
    block = torch.randint(ids, (tokens_BS.shape[1] + 1,), generator=generator)
    tokens_BS[row], targets_BS[row] = block[:-1], block[1:]
    return replace(batch, tokens_BS=tokens_BS, targets_BS=targets_BS)


def vocabulary_size(outline: Outline) -> int:
    """Real rows of the model's first table."""
    table = outline.layers[outline.tables[0]].table
    assert table is not None
    return table.rows
