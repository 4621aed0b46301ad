"""A prepared split is opened for reading any sample by its number."""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.parsing import read_whole
from data_pipeline.shards.manifest import MANIFEST, ManifestType, index_name, read_manifest
from data_pipeline.shards.shard import SampleDamaged, ShardIndex, ShardReader
from data_pipeline.shards.storage import Folder, LocalFolder, data_errors

OPEN_SHARDS = 256
"""Shards that are held open at once; each takes a file descriptor, and its index memory."""


@dataclass(frozen=True)
class Sample:
    """It holds the fields that were read, or none where the sample is damaged."""

    source: str
    """Name of the dataset, for messages."""
    fields: tuple[memoryview, ...] = ()
    damage: str = ""
    """Name and fault of a damaged sample."""
    shard: str = ""
    number: int = 0
    """In the shard, from 0."""
    chance: int | None = None
    """What a training sample may be altered by: it follows from seed and draw alone, whoever reads it when. None in
    validation, where nothing is left to chance."""

    @property
    def place(self) -> str:
        """It says where the sample lies, for messages."""
        return f"{self.source}/{self.shard}: sample {self.number}"


class Dataset(Generic[ManifestType]):
    """It is one split of prepared data, not for concurrent use; `close` it.

    Raises DataError, at the start for what the manifest and the sizes of local files tell, later when a shard
    cannot be fetched or opened. A damaged sample is no error: it is returned as such.
    """

    def __init__(self, folder: Folder, kind: type[ManifestType]) -> None:
        self.manifest = read_manifest(folder, kind)
        self.folder = folder
        self._ends = list(accumulate(shard.samples for shard in self.manifest.shards))
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        if isinstance(folder, LocalFolder):
            for number in range(len(self._ends)):
                self._shard_file(number)
                self._index_file(number)

    @property
    def name(self) -> str:
        """It is the path or URL, for messages."""
        return self.folder.name

    def __len__(self) -> int:
        return self.manifest.samples

    def read(self, number: int) -> Sample:
        """It returns sample `number` in the order of the shards."""
        shard, place = self._locate(number)
        name = self.manifest.shards[shard].name
        try:
            return Sample(self.name, self._reader(shard).read(place), shard=name, number=place)
        except SampleDamaged as error:
            return Sample(self.name, damage=str(error), shard=name, number=place)

    def place(self, number: int) -> tuple[str, int]:
        """It returns the shard of a sample, and its number in it, from 0."""
        shard, place = self._locate(number)
        return self.manifest.shards[shard].name, place

    def field_sizes(self) -> NDArray[np.uint32]:
        """It returns the bytes of each field of all samples (samples, fields), as the indexes have them.

        Raises DataError when one of these cannot be fetched or is none.
        """
        return np.concatenate([self._index(number).rows["fields"] for number in range(len(self._ends))])

    def close(self) -> None:
        """It closes all files."""
        while self._open:
            self._open.popitem()[1].close()

    def _locate(self, number: int) -> tuple[int, int]:
        """It returns the number of the shard, and of the sample in it."""
        shard = bisect_right(self._ends, number)
        return shard, number - (self._ends[shard - 1] if shard else 0)

    def _reader(self, shard: int) -> ShardReader:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = self._open_shard(shard)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        return self._open[shard]

    def _open_shard(self, number: int) -> ShardReader:
        name = f"{self.name}/{self.manifest.shards[number].name}"
        return ShardReader(self._shard_file(number), self._index(number), name)

    def _index(self, number: int) -> ShardIndex:
        entry, path = self.manifest.shards[number], self._index_file(number)
        with data_errors(path):
            content = read_whole(path, entry.index_bytes)
        if hashlib.sha256(content).hexdigest() != entry.index_sha256:
            raise DataError(f"{path}: changed since {self.name}/{MANIFEST} was written")
        return ShardIndex.parse(content, str(path), self.manifest.fields, entry.samples, entry.bytes)

    def _shard_file(self, number: int) -> Path:
        """It returns the local path of a shard of the right size."""
        entry = self.manifest.shards[number]
        return self.folder.local(entry.name, entry.bytes, entry.sha256)

    def _index_file(self, number: int) -> Path:
        """It returns the local path of an index of the right size."""
        entry = self.manifest.shards[number]
        return self.folder.local(index_name(entry.name), entry.index_bytes, entry.index_sha256)
