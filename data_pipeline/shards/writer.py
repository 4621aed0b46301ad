"""Samples are written into numbered tar shards, each with its index."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Self

import webdataset

from data_pipeline.errors import DataError
from data_pipeline.files import create_file
from data_pipeline.shards.manifest import ShardEntry, index_name
from data_pipeline.shards.shard import check_sample, index_shard
from data_pipeline.shards.storage import data_errors


class ShardWriter:
    """It writes `PREFIX-000000.tar`, `PREFIX-000001.tar`, ... of `shard_samples` samples each into `folder`.

    As a context manager it closes its file when something goes wrong; the shard is then without an index.
    """

    def __init__(self, folder: Path, prefix: str, shard_samples: int) -> None:
        self._folder = folder
        self._prefix = prefix
        self._shard_samples = shard_samples
        self._entries: list[ShardEntry] = []
        self._shard: _OpenShard | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shard is not None:
            self._shard.abandon()

    def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        """It appends a sample of encoded fields, named by their extensions.

        Raises DataError for a key or extension that is refused, and when the disk is full.
        """
        if self._shard is None:
            self._shard = _OpenShard(self._folder / f"{self._prefix}-{len(self._entries):06d}.tar")
        self._shard.write(key, fields)
        if self._shard.samples == self._shard_samples:
            self._finish_shard()

    def finish(self) -> tuple[ShardEntry, ...]:
        """It closes and indexes the last shard, and returns all that were written."""
        if self._shard is not None:
            self._finish_shard()
        return tuple(self._entries)

    def _finish_shard(self) -> None:
        assert self._shard is not None
        shard, self._shard = self._shard, None
        self._entries.append(shard.finish())


class _OpenShard:
    """It is a shard that is being written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.samples = 0
        with data_errors(path):
            self._file = BufferedWriter(create_file(path))
        self._tar = webdataset.TarWriter(self._file, encoder=False, mtime=0)

    def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        try:
            check_sample(key, fields)
            with data_errors(self._path):
                self._tar.write({"__key__": key, **fields})
        except ValueError as error:
            raise DataError(f"{self._path}: {error}") from error
        self.samples += 1

    def abandon(self) -> None:
        """It closes the files, whatever can still be written."""
        with suppress(OSError), self._file:
            self._tar.close()

    def finish(self) -> ShardEntry:
        """It closes the shard, also where it fails, and indexes what is on the disk."""
        with data_errors(self._path), self._file:
            self._tar.close()
        index, sha256 = index_shard(self._path)
        index_path = self._path.with_name(index_name(self._path.name))
        with data_errors(index_path):
            index.save(index_path)
            return ShardEntry(
                name=self._path.name,
                samples=len(index),
                bytes=self._path.stat().st_size,
                sha256=sha256,
                index_bytes=index_path.stat().st_size,
                index_sha256=hashlib.sha256(index_path.read_bytes()).hexdigest(),
            )
