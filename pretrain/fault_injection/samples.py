"""Faults of samples go by the samples' draws, so that a skip avoids them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from data_pipeline.batches import Batch
from data_pipeline.reading.batches import Batches, WrappedBatches
from data_pipeline.reading.stream import BatchStream
from pretrain.fault_injection.fault import PlannedFault

Alteration = Callable[[Batch, int, torch.Generator], Batch]
"""(batch, row, a generator that the row's draw has seeded) -> the batch with that row altered."""


class AlteredBatches(WrappedBatches):
    """It is a stream that alters the samples of some draws; for the rest it is the stream within."""

    def __init__(self, within: Batches, draws: range, alter: Alteration) -> None:
        super().__init__(within)
        self._draws = draws
        self._alter = alter

    def __next__(self) -> Sequence[Batch]:
        batches = next(self.within)
        draws = iter(self.within.own_draws())
        return [self._altered(batch, [next(draws) for _ in range(batch.samples)]) for batch in batches]

    def _altered(self, batch: Batch, draws: list[int]) -> Batch:
        for row, draw in enumerate(draws):
            if draw in self._draws:
                batch = self._alter(batch, row, torch.Generator().manual_seed(draw))
        return batch


class SampleFault(PlannedFault, ABC):
    """Something is wrong with the samples that these steps have when nothing is skipped before them."""

    def wrap_batches(self, stream: BatchStream[Any, Any]) -> Batches:
        """It returns the stream with its samples altered."""
        size = self.config.data.global_batch_size
        first = (self.plan.step - 1) * size
        draws = range(first, first + self.plan.steps * size)
        return AlteredBatches(stream, draws, self.alteration(stream))

    @abstractmethod
    def alteration(self, stream: BatchStream[Any, Any]) -> Alteration:
        """It says what is done to the samples of a stream; the kind of data knows how."""


class PoisonedSamples(SampleFault):
    """Its targets are in an order of chance: inputs and frequencies stay, what was to be learnt from them is gone."""

    def alteration(self, stream: BatchStream[Any, Any]) -> Alteration:
        """It has the source shuffle the targets of a sample."""
        return stream.source.shuffle_targets


class GarbageBatch(SampleFault):
    """Its samples are noise that has the shape of sound ones."""

    def alteration(self, stream: BatchStream[Any, Any]) -> Alteration:
        """It has the source make noise of a sample."""
        source, manifest = stream.source, stream.manifest

        def alter(batch: Batch, row: int, generator: torch.Generator) -> Batch:
            return source.randomise(batch, manifest, row, generator)

        return alter
