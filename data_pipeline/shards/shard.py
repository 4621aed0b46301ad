"""Tar shards have an index of every sample; this writes, indexes and verifies them, and reads by byte offset.

A shard is a plain webdataset: samples are runs of members `KEY.EXTENSION`. Its index has one row a sample:
where its first header starts, how many bytes it takes with headers and padding, their CRC-32, and the sizes
of its fields. Reading needs one `pread` and no tar parsing, and no byte of a sample, header or data, can change
unnoticed. Nothing is ever unpickled or extracted.
"""

import hashlib
import mmap
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.files import open_regular
from data_pipeline.parsing import parsed_as
from data_pipeline.shards.arrays import parsed_array
from data_pipeline.shards.storage import data_errors
from data_pipeline.shown import shown

BLOCK = tarfile.BLOCKSIZE
KEY = re.compile(r"(?!__)[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*")
"""No dots: webdataset would cut the key there and merge samples. No absolute paths, no `..`, no metadata."""

LONGEST_NAME = tarfile.LENGTH_NAME
"""Bytes of `KEY.EXTENSION` that a plain tar header holds."""

EXTENSION = re.compile(r"[a-z0-9][a-z0-9_]*(\.[a-z0-9_]+)*")
"""Nothing that starts with an underscore: webdataset takes it for metadata and leaves it out."""

UNPICKLED = {"pyd", "pkl", "pickle", "pth", "pt"}
"""Extensions whose standard decoders unpickle, that is run, what is in them."""


@dataclass(frozen=True)
class ShardIndex:
    """It holds the rows of one shard's index."""

    fields: tuple[str, ...]
    """Extensions of every sample's members, in the order of the tar file."""
    rows: NDArray[np.void]
    """One structured row a sample: offset, size, crc32, sizes of the fields."""

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def dtype(fields: int) -> np.dtype[np.void]:
        """It returns the layout of a row for samples of so many fields."""
        return np.dtype([("offset", "<u8"), ("size", "<u4"), ("crc32", "<u4"), ("fields", "<u4", (fields,))])

    @classmethod
    def parse(cls, content: bytes, name: str, fields: tuple[str, ...], samples: int, size: int) -> Self:
        """It reads the content of an index file, for a shard of `size` bytes that holds `samples` samples.

        Raises DataError when it is no such index.
        """
        with parsed_as(DataError, name):
            rows = parsed_array(content, cls.dtype(len(fields)), (samples,))
            _check_rows(rows, size)
        return cls(fields, rows)

    def save(self, path: Path) -> None:
        """It writes an index file."""
        with path.open("wb") as file:
            np.save(file, self.rows, allow_pickle=False)


def _check_rows(rows: NDArray[np.void], shard_bytes: int) -> None:
    """It refuses rows that do not lie in the shard one after another, each as long as its fields."""
    sizes = rows["size"].astype(np.int64)
    blocks = BLOCK + -(-rows["fields"].astype(np.int64) // BLOCK) * BLOCK
    ends = np.cumsum(sizes)
    if (blocks.sum(1) != sizes).any() or (rows["offset"] != (ends - sizes).astype(np.uint64)).any():
        raise ValueError("its samples do not lie one after another")
    if ends[-1] > shard_bytes:
        raise ValueError(f"its samples end at byte {ends[-1]}, the shard has {shard_bytes}")


class SampleDamaged(Exception):
    """The bytes of a sample are not those that were indexed; the message names shard and sample."""


class ShardReader:
    """It reads an open shard. It is not for concurrent use; `close` it."""

    def __init__(self, path: Path, index: ShardIndex, name: str) -> None:
        self._name = name
        self._path = path
        self._rows = index.rows
        with data_errors(path):
            self._file = open_regular(path, follow=True)

    def read(self, number: int) -> tuple[memoryview, ...]:
        """It returns the fields of sample `number`. Raises SampleDamaged, and DataError when it cannot be read."""
        offset, size, crc32, fields = self._rows[number].item()
        # What cannot be read is not what is damaged: other ranks may read it, and must not see another sample.
        with data_errors(self._path):
            content = os.pread(self._file.fileno(), size, offset)
        if len(content) < size:
            raise self._damaged(number, offset, f"{len(content)} of {size} bytes left")
        if zlib.crc32(content) != crc32:
            raise self._damaged(number, offset, "checksum mismatch")
        return tuple(_payloads(memoryview(content), fields.tolist()))

    def close(self) -> None:
        """It closes the file."""
        self._file.close()

    def _damaged(self, number: int, offset: int, what: str) -> SampleDamaged:
        return SampleDamaged(f"{self._name}: sample {number} at byte {offset}: {what}")


def _payloads(content: memoryview, sizes: Sequence[int]) -> Iterator[memoryview]:
    start = BLOCK
    for size in sizes:
        yield content[start : start + size]
        start += _padded(size) + BLOCK


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def check_sample(key: str, fields: Mapping[str, Any]) -> None:
    """It raises ValueError for a key or an extension that other readers would misread or run."""
    if not KEY.fullmatch(key):
        raise ValueError(f"key {key!r}: only letters, digits, _ and - in parts divided by /, no __ in front")
    for extension in fields:
        if not EXTENSION.fullmatch(extension):
            raise ValueError(f"key {key!r}: extension {extension!r}: only a to z, digits, _ and dots between")
        if extension.rpartition(".")[2] in UNPICKLED:
            raise ValueError(f"key {key!r}: extension {extension!r} is refused: standard readers unpickle it")
        if len(f"{key}.{extension}") > LONGEST_NAME:
            raise ValueError(f"key {key!r} with {extension!r} is longer than {LONGEST_NAME} characters")


def index_shard(path: Path) -> tuple[ShardIndex, str]:
    """It indexes a tar file, and returns the index and the shard's SHA-256.

    Raises DataError when the tar is damaged or cut, or has members other than plain files, keys or extensions
    that are refused, a key twice, or samples with different fields.
    """
    with (
        data_errors(path),
        parsed_as(DataError, path),
        open_regular(path, follow=True) as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content,
    ):
        return _index(_members(content), content), hashlib.sha256(content).hexdigest()


def _members(content: mmap.mmap) -> list[tarfile.TarInfo]:
    """It returns the headers of all members, once it is sure that they are plain files and none is missing."""
    members, end = [], 0
    with tarfile.open(fileobj=content, mode="r:") as tar:
        # One after another: a size below zero has tarfile go in circles.
        while member := tar.next():
            _check_member(member, end)
            members.append(member)
            end = member.offset_data + _padded(member.size)
    rest = content[end:]
    if len(rest) < 2 * BLOCK or rest.strip(b"\0"):
        raise ValueError(f"damaged or cut after member {len(members)}, at byte {end}")
    return members


def _check_member(member: tarfile.TarInfo, start: int) -> None:
    """It refuses links, folders, devices, files with holes, extended headers, and sizes that lead back."""
    name = shown(member.name)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ValueError(f"member {name} is not a plain file")
    if (member.offset, member.offset_data) != (start, start + BLOCK):
        raise ValueError(f"member {name} has an extended header; the name is too long")
    if member.size < 0:
        raise ValueError(f"member {name} has a size of {member.size} bytes")


def _index(members: list[tarfile.TarInfo], content: mmap.mmap) -> ShardIndex:
    samples = [(key, list(group)) for key, group in groupby(members, key=lambda m: m.name.partition(".")[0])]
    if not samples:
        raise ValueError("holds no samples")
    fields = _fields(samples[0][1])
    seen: set[str] = set()
    rows = np.empty(len(samples), ShardIndex.dtype(len(fields)))
    for number, (key, group) in enumerate(samples):
        check_sample(key, dict.fromkeys(_fields(group)))
        if key in seen:
            raise ValueError(f"key {key!r} occurs twice")
        if _fields(group) != fields:
            raise ValueError(f"key {key!r} has the fields {_fields(group)}, others have {fields}")
        seen.add(key)
        rows[number] = _row(group, content)
    return ShardIndex(fields, rows)


def _fields(group: list[tarfile.TarInfo]) -> tuple[str, ...]:
    return tuple(member.name.partition(".")[2] for member in group)


def _row(group: list[tarfile.TarInfo], content: mmap.mmap) -> tuple[int, int, int, list[int]]:
    start = group[0].offset
    end = group[-1].offset_data + _padded(group[-1].size)
    return start, end - start, zlib.crc32(content[start:end]), [member.size for member in group]
