"""Tensors lie in files of the safetensors format, by name; one at a time goes into memory.

The format is Hugging Face's (github.com/huggingface/safetensors): the length of a header, the header, which is JSON and
says where each tensor lies, then the bytes of all tensors without gaps. Nothing in it is ever executed.

Its own library takes all tensors of a file at once and makes the file by its name. A checkpoint of many gigabytes is
written piece by piece, into a file that was not there before, and read without mapping it: pages of a mapped file count
as memory of the process.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from data_pipeline.files import create_file, open_regular, write_all
from data_pipeline.parsing import parse_json, parsed_as
from data_pipeline.shown import shown
from pretrain.errors import CheckpointError

SUFFIX = ".safetensors"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of numbers by the names that headers have for them."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
LFS_POINTER = b"version https://git-lfs"
"""A clone without Git LFS has files that begin like this."""
LARGEST_HEADER = 100_000_000
"""Bytes; the format allows no more."""
_LENGTH = struct.Struct("<Q")
_WRITTEN_AT_ONCE = 2**26
"""Bytes. A thread that writes lets the run have the interpreter in between."""


@dataclass(frozen=True)
class TensorEntry:
    """It describes one tensor of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorEntry":
        """It describes a tensor that is there."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def size(self) -> int:
        """It counts the elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """It counts the bytes."""
        return self.size * self.dtype.itemsize


class TensorFileWriter:
    """It writes a new file, tensor by tensor in the order of its entries.

        with TensorFileWriter(path, {"a": TensorEntry(torch.float32, (2, 3))}) as file:
            file.write("a", tensor)

    Its bytes are with the operating system when the block ends; whoever needs them on disk forces them there.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, TensorEntry], metadata: Mapping[str, str] | None = None
    ) -> None:
        """It raises OSError, FileExistsError above all."""
        self._path = path
        self._left = list(entries.items())[::-1]
        self._file = create_file(path)
        try:
            write_all(self._file.fileno(), _header(entries, metadata or {}))
        except BaseException:
            self._file.close()
            raise

    def write(self, name: str, tensor: Tensor) -> None:
        """It writes the next tensor, from whatever device.

        Raises OSError where the disk is full or refuses, and ValueError for another tensor than the next one.
        """
        expected, entry = self._left[-1] if self._left else ("none", None)
        if name != expected or entry != TensorEntry.of(tensor):
            raise ValueError(
                f"{self._path}: {expected} {entry} comes next, not {name} {TensorEntry.of(tensor)}"
            )
        self._left.pop()
        data = _bytes_of(tensor.detach().cpu().contiguous())
        for start in range(0, len(data), _WRITTEN_AT_ONCE):
            write_all(self._file.fileno(), data[start : start + _WRITTEN_AT_ONCE])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None and self._left:
            raise ValueError(f"{self._path}: {self._left[-1][0]} was never written")


class TensorFile:
    """It reads the tensors of a file, or runs of their elements; it holds no file open and maps none."""

    def __init__(self, path: Path) -> None:
        """It reads the header.

        Raises:
            OSError: the file cannot be opened.
            CheckpointError: it is not of the format.
        """
        self.path = path
        with open_regular(path) as file, parsed_as(CheckpointError, path):
            size = os.fstat(file.fileno()).st_size
            self._identity = _identity_of(file)
            start = file.read(_LENGTH.size)
            if start == LFS_POINTER[: _LENGTH.size]:
                raise ValueError(
                    "is a pointer of Git LFS in place of the tensors; `git lfs pull` fetches them"
                )
            if len(start) < _LENGTH.size:
                raise ValueError(f"has {size} bytes, fewer than a header begins with")
            (length,) = _LENGTH.unpack(start)
            if length > min(LARGEST_HEADER, size - _LENGTH.size):
                raise ValueError(f"its header is to have {length} bytes, the whole file has {size}")
            self._start = _LENGTH.size + length
            header = parse_json(file.read(length))
            self.metadata: dict[str, str] = _metadata(header.pop(METADATA, {}))
            """Text by name."""
            self._header: dict[str, Any] = header
            self._check(size)

    @cached_property
    def entries(self) -> dict[str, TensorEntry]:
        """These are its tensors, in the order in which they lie there."""
        order = sorted(self._header, key=lambda name: self._header[name]["data_offsets"])
        return {name: self._entry(name) for name in order}

    def read(self, name: str) -> Tensor:
        """It returns a tensor. Raises OSError, and CheckpointError where there is none of that name."""
        entry = self._known(name)
        return self.read_flat(name, 0, entry.size).view(entry.shape)

    def read_flat(self, name: str, start: int, stop: int) -> Tensor:
        """It returns elements [start, stop) of a tensor in row-major order, (stop - start,).

        Raises OSError, and CheckpointError where the file has no such elements, or is another one than at first.
        """
        entry = self._known(name)
        if not 0 <= start <= stop <= entry.size:
            raise CheckpointError(f"{self.path}: {shown(name)} has no elements {start} to {stop}")
        tensor = torch.empty(stop - start, dtype=entry.dtype)
        at = self._start + self._header[name]["data_offsets"][0] + start * entry.dtype.itemsize
        left = _bytes_of(tensor)
        with open_regular(self.path) as file:
            if _identity_of(file) != self._identity:
                raise CheckpointError(
                    f"{self.path}: was changed or replaced while it was read; do that again"
                )
            while left:
                count = os.preadv(file.fileno(), [left], at)
                if not count:
                    raise CheckpointError(f"{self.path}: ends within {shown(name)}")
                left, at = left[count:], at + count
        return tensor

    def _known(self, name: str) -> TensorEntry:
        if name not in self.entries:
            raise CheckpointError(f"{self.path}: has no tensor {shown(name)}")
        return self.entries[name]

    def _entry(self, name: str) -> TensorEntry:
        fields = self._header[name]
        return TensorEntry(DTYPES[fields["dtype"]], tuple(fields["shape"]))

    def _check(self, size: int) -> None:
        """It raises an error of any kind unless all tensors lie in the file, one behind the other."""
        end = 0
        for name in self.entries:
            first, last = self._header[name]["data_offsets"]
            entry = self._entry(name)
            if not all(type(n) is int and n >= 0 for n in (first, last, *entry.shape)):
                raise ValueError(f"{shown(name)}: offsets and shape must be whole numbers from 0 on")
            if (first, last) != (end, end + entry.nbytes):
                raise ValueError(
                    f"{shown(name)}: lies at {first} to {last}, not {end} to {end + entry.nbytes}"
                )
            end = last
        if self._start + end != size:
            raise ValueError(f"has {size} bytes, its header describes {self._start + end}")


def _header(entries: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> bytes:
    fields: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    start = 0
    for name, entry in entries.items():
        stop = start + entry.nbytes
        fields[name] = {"dtype": NAMES[entry.dtype], "shape": entry.shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    return _LENGTH.pack(len(text)) + text


def _identity_of(file: BufferedReader) -> tuple[int, int, int]:
    """It returns what is the same of a file for as long as nobody replaces it or writes to it."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns


def _metadata(fields: Any) -> dict[str, str]:
    if not all(isinstance(value, str) for value in fields.values()):
        raise ValueError(f"{METADATA}: values must be strings")
    return dict(fields)


def _bytes_of(tensor: Tensor) -> memoryview:
    """It returns the memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
