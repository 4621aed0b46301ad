"""Samples as people read them: where a draw leads, and what the text of it says."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.reading.mixture import Mixture
from data_pipeline.reading.order import SampleOrder
from data_pipeline.shards.dataset import Dataset
from data_pipeline.shards.manifest import TextManifest
from data_pipeline.text.blocks import BlockCodec
from data_pipeline.text.tokenizer import END_OF_TEXT, Tokenizer


@dataclass(frozen=True)
class Excerpt:
    """One sample of the training data."""

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


def excerpts(mixture: Mixture, order: SampleOrder, draws: Iterable[int]) -> Iterator[Excerpt]:
    """The samples that these draws lead to.

    Raises DataError where a shard or the tokenizer cannot be read.
    """
    wanted = np.fromiter(draws, np.int64)
    found = order.locate(wanted)
    tokenizer = tokenizer_of(mixture.sources[0])
    codec = BlockCodec(mixture.manifest.sequence_length, mixture.manifest.dtype)
    places = (wanted.tolist(), found.source.tolist(), found.index.tolist(), found.epoch.tolist())
    for draw, number, index, epoch in zip(*places, strict=True):
        source = mixture.sources[number]
        shard, place = source.place(index)
        sample = source.read(index)
        text = spelled(codec.decode(sample.fields).tolist(), tokenizer) if sample.fields else ""
        yield Excerpt(draw, source.name, shard, place, epoch, text, sample.damage)


def tokenizer_of(source: Dataset[TextManifest]) -> Tokenizer:
    """The one that lies beside the shards; that it is theirs was checked when they were opened."""
    folder, file = source.folder.parent(), source.manifest.tokenizer.file
    if not folder.has(file):
        raise DataError(f"{folder.name}/{file}: the tokenizer does not lie beside its shards any more")
    return Tokenizer(folder.read(file), f"{folder.name}/{file}")


def spelled(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of a block, with the boundaries between documents spelled out."""
    documents: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.end_of_text:
            documents.append([])
        else:
            documents[-1].append(token)
    return END_OF_TEXT.join(map(tokenizer.decode, documents))
