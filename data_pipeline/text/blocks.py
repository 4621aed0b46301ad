"""Text becomes samples here: documents of token ids are packed into blocks, and blocks become bytes in a shard.

S  targets in a sequence; a block holds S + 1 ids
V  vocabulary size
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FIELDS = ("npy",)
"""Extensions of the members of a text sample."""

TokenType = Literal["uint16", "uint32"]


def token_type(vocabulary_size: int) -> TokenType:
    """It returns the smallest type that holds every id."""
    return "uint16" if vocabulary_size <= 1 << 16 else "uint32"


class BlockPacker:
    """It packs documents into blocks of S + 1 ids with stride S: every id but the very first is a target once.

    The stream opens with the end-of-text id and has one after each document, so that a document's first token
    is predicted from it. What is left at the end, less than a block, is dropped.
    """

    def __init__(self, sequence_length: int, end_of_text: int, dtype: TokenType) -> None:
        self._stride = sequence_length
        self._separator = np.array([end_of_text], dtype)
        self._pending = [self._separator]
        self._size = 1

    def add(self, document: NDArray[np.unsignedinteger]) -> list[NDArray[np.unsignedinteger]]:
        """It appends a document's ids, and returns the blocks that are complete now."""
        self._pending += [document, self._separator]
        self._size += len(document) + 1
        if self._size <= self._stride:
            return []
        ids = np.concatenate(self._pending)
        count = (len(ids) - 1) // self._stride
        rest = ids[count * self._stride :]
        self._pending, self._size = [rest], len(rest)
        return [
            ids[start : start + self._stride + 1] for start in range(0, count * self._stride, self._stride)
        ]


@dataclass(frozen=True)
class BlockCodec:
    """It stores blocks as the `.npy` member of a sample, which any webdataset decoder reads."""

    sequence_length: int
    dtype: TokenType

    def encode(self, block_S1: NDArray[np.unsignedinteger]) -> dict[str, bytes]:
        """It returns the fields of a sample."""
        return {FIELDS[0]: self._header + block_S1.astype(self._stored).tobytes()}

    def decode(self, fields: Sequence[memoryview]) -> NDArray[np.unsignedinteger]:
        """It returns the block [S + 1] of a sample's fields. Raises ValueError when they hold something else."""
        content = fields[0]
        if content[: len(self._header)] != self._header or len(content) != len(self._header) + self._bytes:
            raise ValueError(f"not {self.sequence_length + 1} ids of type {self.dtype}")
        return np.frombuffer(content, self._stored, offset=len(self._header))

    @cached_property
    def _stored(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(self.dtype).newbyteorder("<")

    @cached_property
    def _bytes(self) -> int:
        return (self.sequence_length + 1) * self._stored.itemsize

    @cached_property
    def _header(self) -> bytes:
        """It is what `numpy.save` writes before the ids: the same for every block."""
        file = io.BytesIO()
        np.save(file, np.zeros(self.sequence_length + 1, self._stored))
        return file.getvalue()[: -self._bytes]
