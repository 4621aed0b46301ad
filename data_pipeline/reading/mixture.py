"""The datasets of a run are opened here, and checked against the configuration and each other."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batches import BatchType
from data_pipeline.config import ConfigType, DataConfig, SourceConfig
from data_pipeline.errors import DataError
from data_pipeline.reading.order import SampleOrder, SourceShape
from data_pipeline.shards.dataset import Dataset, Sample
from data_pipeline.shards.manifest import (
    MANIFEST,
    ManifestType,
    folder_with_manifest,
    read_manifest,
    split_folder,
)
from data_pipeline.shards.storage import Folder
from data_pipeline.source import Buckets, Source


@dataclass(frozen=True)
class Mixture(Generic[ManifestType]):
    """It holds opened datasets with their weights."""

    datasets: tuple[Dataset[ManifestType], ...]
    weights: tuple[float, ...]
    common: dict[str, Any]
    """The facts of their kind that all of them share, and what the configuration chooses of their samples."""
    buckets: tuple[Buckets | None, ...]
    """What comes together, where samples differ in length."""

    @property
    def manifest(self) -> ManifestType:
        """It is that of the first dataset; in what decides the samples the others agree with it."""
        return self.datasets[0].manifest

    def order(self, seed: int, shuffle: bool) -> SampleOrder:
        """It returns the order in which the samples come. Raises DataError when a weight is too small."""
        shapes = (
            SourceShape(dataset.manifest.fingerprint, len(dataset), weight, buckets)
            for dataset, weight, buckets in zip(self.datasets, self.weights, self.buckets, strict=True)
        )
        try:
            return SampleOrder(seed, tuple(shapes), shuffle)
        except ValueError as error:
            raise DataError(f"data.sources: {error}") from error

    def facts(self) -> dict[str, Any]:
        """It returns all that decides which samples come, under the names that a message would use."""
        facts = {"kind": self.manifest.kind, **self.common, "sources": len(self.datasets)}
        for number, (dataset, weight) in enumerate(zip(self.datasets, self.weights, strict=True)):
            facts[f"sources.{number}.fingerprint"] = dataset.manifest.fingerprint
            facts[f"sources.{number}.weight"] = weight
        if first := self.buckets[0]:
            facts["bucket_size"] = first.size
        return facts

    def lengths(self) -> NDArray[np.int32] | None:
        """It returns the lengths of the samples of all datasets, one after the other; none where all have one."""
        lengths = [buckets.lengths_NK for buckets in self.buckets if buckets]
        return np.concatenate(lengths) if lengths else None

    @property
    def samples(self) -> int:
        """It counts the samples of all datasets."""
        return sum(map(len, self.datasets))

    def read(self, number: int) -> Sample:
        """It returns a sample, counted through all datasets."""
        dataset, within = self._located(number)
        return dataset.read(within)

    def place(self, number: int) -> str:
        """It says where a sample lies, counted through all datasets, for people."""
        dataset, within = self._located(number)
        shard, place = dataset.place(within)
        return Sample(dataset.name, shard=shard, number=place).place

    def _located(self, number: int) -> tuple[Dataset[ManifestType], int]:
        """It returns the dataset of a sample, and its number in it."""
        ends = list(accumulate(map(len, self.datasets)))
        dataset = bisect_right(ends, number)
        return self.datasets[dataset], number - ends[dataset] + len(self.datasets[dataset])

    @property
    def by_cost(self) -> bool:
        """It says whether micro-batches are about as large, rather than of as many samples."""
        return any(buckets.by_cost for buckets in self.buckets if buckets)

    def close(self) -> None:
        """It closes all files."""
        for dataset in self.datasets:
            dataset.close()


def training_mixture(
    source: Source[ManifestType, ConfigType, BatchType], data: ConfigType
) -> Mixture[ManifestType]:
    """It opens the training data. Raises DataError when a dataset is missing or does not fit the others."""
    folders = [split_folder(entry.path, "train", data.cache) for entry in data.sources]
    return _open(source, folders, data.sources, data)


def validation_mixture(
    source: Source[ManifestType, ConfigType, BatchType], data: ConfigType
) -> Mixture[ManifestType]:
    """It opens the validation data, by default the validation split beside each training dataset.

    Raises DataError when a dataset is missing or does not fit the others or the training data.
    """
    entries = data.validation or data.sources
    if data.validation:
        folders = [split_folder(entry.path, "validation", data.cache) for entry in data.validation]
    else:
        folders = [_existing(_validation_beside(entry, data)) for entry in data.sources]
    mixture = _open(source, folders, entries, data)
    # `surefoot evaluate --data DIR/test` has one split in both places: it is held out, and nothing is trained.
    train = folder_with_manifest(data.sources[0].path, "train", data.cache)
    source.check_together(mixture.datasets[0], train.name, read_manifest(train, source.manifest_type))
    return mixture


def has_validation(data: DataConfig) -> bool:
    """It tells whether there is data to validate with: what the configuration names, or a split beside a training set.

    Raises DataError when that cannot be found out.
    """
    return bool(data.validation) or any(
        _validation_beside(entry, data).has(MANIFEST) for entry in data.sources
    )


def _validation_beside(entry: SourceConfig, data: DataConfig) -> Folder:
    return split_folder(entry.path, "train", data.cache).parent().child("validation")


def _existing(folder: Folder) -> Folder:
    if not folder.has(MANIFEST):
        raise DataError(
            f"{folder.parent().name}: has no validation split ({folder.name}/{MANIFEST}); "
            "prepare with --validation-fraction or --splits that leave it a part, or set data.validation"
        )
    return folder


def _open(
    source: Source[ManifestType, ConfigType, BatchType],
    folders: Sequence[Folder],
    entries: Sequence[SourceConfig],
    data: ConfigType,
) -> Mixture[ManifestType]:
    datasets = tuple(source.open(folder, data) for folder in folders)
    first = datasets[0]
    for dataset in datasets:
        source.check(dataset, data)
        source.check_together(dataset, first.name, first.manifest)
    weights = tuple(entry.weight for entry in entries)
    buckets = tuple(source.buckets(dataset, data) for dataset in datasets)
    common = {**source.facts(first.manifest), **source.choices(data)}
    return Mixture(datasets, weights, common, buckets)
