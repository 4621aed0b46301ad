"""Samples are shown as people read them: where a draw leads, and what the sample there says."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.reading.mixture import Mixture
from data_pipeline.reading.order import SampleOrder
from data_pipeline.shards.dataset import Sample


@dataclass(frozen=True)
class Excerpt:
    """It is one sample of the training data."""

    draw: int
    """Its place in the endless order, which skip lists speak of."""
    source: str
    """Name of the dataset."""
    shard: str
    sample: int
    """Number in the shard, from 0."""
    epoch: int
    """From 0."""
    text: str = ""
    damage: str = ""
    """What is wrong with a sample that has no text."""


def excerpts(
    mixture: Mixture[Any], order: SampleOrder, draws: Iterable[int], describe: Callable[[Sample], str]
) -> Iterator[Excerpt]:
    """It yields the samples that these draws lead to, as `describe` tells them.

    Raises DataError where a shard cannot be read.
    """
    wanted = np.fromiter(draws, np.int64)
    found = order.locate(wanted)
    places = (wanted.tolist(), found.source.tolist(), found.index.tolist(), found.epoch.tolist())
    for draw, number, index, epoch in zip(*places, strict=True):
        dataset = mixture.datasets[number]
        shard, place = dataset.place(index)
        sample = dataset.read(index)
        text = describe(sample) if sample.fields else ""
        yield Excerpt(draw, dataset.name, shard, place, epoch, text, sample.damage)
