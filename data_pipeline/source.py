"""A source is the contract of a kind of data: what storing and reading need to know of it, and nothing else.

Each room (`text/`, ...) implements it in its `source.py`. A task hands its source to the streams, so there is no list
of sources here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic

import numpy as np
from numpy.typing import NDArray
from torch import Generator

from data_pipeline.batches import BatchType
from data_pipeline.config import ConfigType
from data_pipeline.errors import DataError
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.shards.manifest import ManifestType
from data_pipeline.shards.storage import Folder

Companion = Callable[[str], bytes]
"""It returns a file that a model is used with, by its name (`Source.companions`). Raises DataError where there is
none."""


def companion_of(companions: Mapping[str, bytes]) -> Companion:
    """It finds files by their names."""

    def companion(name: str) -> bytes:
        if name not in companions:
            raise DataError(f"there is no {name} beside the data")
        return companions[name]

    return companion


@dataclass(frozen=True)
class Baseline:
    """It is a loss that the data itself knows, for a model's to be compared with."""

    name: str
    """What has this loss, as in `a unigram model`."""
    loss: float
    """Mean over the whole validation set, in the unit of the task's loss."""


@dataclass(frozen=True)
class Buckets:
    """They say which samples of a dataset are to come together, for batches to have little padding."""

    lengths_NK: NDArray[np.int32]
    """Lengths of all samples, on each side that is padded."""
    size: int
    """Samples that come together."""
    by_cost: bool = False
    """Whether a micro-batch of long samples has fewer of them, so that all are about as large with their padding; else
    all have the same number. The first side counts."""
    altered: Callable[[NDArray[np.int32], NDArray[np.uint64]], NDArray[np.int32]] | None = None
    """It returns what lengths become of those of training samples when chance alters these; none: the same."""

    def lengths(self, samples: NDArray[np.int64], chances: NDArray[np.uint64]) -> NDArray[np.int32]:
        """It returns how long some samples are, each with its chance."""
        lengths_NK = self.lengths_NK[samples]
        return self.altered(lengths_NK, chances) if self.altered else lengths_NK


class TargetMeasure(ABC, Generic[BatchType]):
    """It tells what targets amount to in units that do not depend on how the data was cut into them, for losses to be
    compared over models that cut otherwise."""

    @abstractmethod
    def add(self, batch: BatchType) -> None:
        """It takes in the targets of a batch that count, in the order of the data."""

    @abstractmethod
    def totals(self) -> dict[str, int]:
        """It returns how many units there were so far, by their name in the singular, such as `byte`."""

    @abstractmethod
    def baseline(self) -> Baseline:
        """It returns the baseline of a model that knows these targets, for data that brings none."""


class Source(ABC, Generic[ManifestType, ConfigType, BatchType]):
    """A source takes one kind of data from what lies in its shards to batches. It has no state of its own."""

    manifest_type: type[ManifestType]
    """Manifests of another type are refused."""
    companion_files: ClassVar[tuple[str, ...]] = ()
    """Names that `companions` may have."""

    def open(self, folder: Folder, data: ConfigType) -> Dataset[ManifestType]:
        """It opens a split. Here its samples are those that are stored; a subclass may make others of these, each by
        its number alone. Raises DataError."""
        return Dataset(folder, self.manifest_type)

    @abstractmethod
    def facts(self, manifest: ManifestType) -> dict[str, Any]:
        """It returns what decides the samples, beside their kind and shards, as JSON under the names that a message
        would use.

        All datasets of a mixture have it in common, and a saved position is of use only while it stays the same.
        """

    def choices(self, data: ConfigType) -> dict[str, Any]:
        """It returns what a configuration says of which samples are made of those that are stored, as JSON under its
        keys: a saved position is of use only while it stays the same."""
        return {}

    @abstractmethod
    def check(self, dataset: Dataset[ManifestType], data: ConfigType) -> None:
        """It raises DataError when a dataset is not what the configuration says, or not as it was made."""

    def check_together(self, dataset: Dataset[ManifestType], other_name: str, other: ManifestType) -> None:
        """It raises DataError when a dataset cannot be mixed with another, or validate a model that learns from it.

        Here that is when their facts differ; a subclass may have more to say about what to do.
        """
        mine, its = self.facts(dataset.manifest), self.facts(other)
        for fact in mine:
            if mine[fact] != its[fact]:
                raise DataError(
                    f"{dataset.name}: {fact} is {mine[fact]}, but {other_name} has {its[fact]}; "
                    "prepare one like the other"
                )

    @abstractmethod
    def collator(self, manifest: ManifestType, data: ConfigType) -> Callable[[Sequence[Sample]], BatchType]:
        """It returns what makes a micro-batch of samples.

        A sample without fields is damaged, or pads the end of a validation set: it must become a row whose targets
        have weight 0, and what its `damage` says goes into the batch's `damaged`. Raises DataError, when called, for
        a sound sample that is not what its manifest says.
        """

    @abstractmethod
    def describer(self, dataset: Dataset[ManifestType]) -> Callable[[Sample], str]:
        """It returns what tells people the content of a sound sample, of this dataset or one that is mixed with it.

        Raises DataError where what it takes, such as a tokenizer, cannot be read.
        """

    def buckets(self, dataset: Dataset[ManifestType], data: ConfigType) -> Buckets | None:
        """It returns which samples are to come together; none: all are equally long. Raises DataError where lengths
        cannot be read."""
        return None

    def baseline(self, manifest: ManifestType) -> Baseline | None:
        """It returns the baseline of a validation split; none where the data knows none."""
        return None

    def companions(self, dataset: Dataset[ManifestType]) -> dict[str, bytes]:
        """It returns files that a trained model is used with, by name, such as the tokenizer: checkpoints carry them.

        Raises DataError where they cannot be read.
        """
        return {}

    def measure(self, companion: Callable[[str], bytes]) -> TargetMeasure[BatchType] | None:
        """It returns what measures targets; none: there are no such units. `companion` returns a file of `companions`
        by its name. Raises DataError where that is not what it should be."""
        return None

    @abstractmethod
    def shuffle_targets(self, batch: BatchType, row: int, generator: Generator) -> BatchType:
        """It returns the batch with the targets of one sample in an order of chance, for planted faults: inputs and
        frequencies are as they were, and what was to be learnt from them is gone."""

    @abstractmethod
    def randomise(
        self, batch: BatchType, manifest: ManifestType, row: int, generator: Generator
    ) -> BatchType:
        """It returns the batch with one sample that is noise but has the shape of a sound one, for planted faults."""
