"""Sentences become ids here, bytes in a shard, and ids again.

A sentence is stored as its ids with the end of text behind them: what the encoder reads, and what the decoder is to
say. Its length is that of the file, so the index of a shard knows it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from data_pipeline.text.blocks import TokenType
from data_pipeline.text.tokenizer import Tokenizer

PADDING = 0
"""The id behind the end of a sentence in a batch, on both sides. It is that of the unknown piece, which no text is
encoded to, so what is real of `ids` is `ids != PADDING`. A damaged sample is padding from the first token on."""

FIELDS = ("source.npy", "target.npy")
"""Extensions of the members of a pair."""

HEADER_BYTES = 128
"""What `numpy.save` writes before ids, however many they are."""

Ids = NDArray[np.unsignedinteger]


def encode_pairs(
    tokenizers: tuple[Tokenizer, Tokenizer], dtype: TokenType, texts: tuple[str, ...]
) -> list[Ids]:
    """It returns the ids of sources and targets in turns, each with the end of text behind it."""
    sides = zip(texts, cycle(tokenizers), strict=False)
    return [np.array([*tokenizer.encode(text), tokenizer.end_of_text], dtype) for text, tokenizer in sides]


@dataclass(frozen=True)
class SentenceCodec:
    """It stores sentences as `.npy` members of a sample, which any webdataset decoder reads."""

    dtype: TokenType

    def encode(self, source: Ids, target: Ids) -> dict[str, bytes]:
        """It returns the fields of a sample."""
        return dict(zip(FIELDS, map(self._encoded, (source, target)), strict=True))

    def decode(self, fields: Sequence[memoryview]) -> tuple[Ids, Ids]:
        """It returns source and target. Raises ValueError when the fields hold something else."""
        source, target = map(self._decoded, FIELDS, fields)
        return source, target

    def lengths(self, sizes_NK: NDArray[np.uint32]) -> NDArray[np.int32]:
        """It returns how many ids fields of these sizes hold."""
        return (sizes_NK.astype(np.int32) - HEADER_BYTES) // self._stored.itemsize

    @cached_property
    def _stored(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(self.dtype).newbyteorder("<")

    def _encoded(self, ids: Ids) -> bytes:
        return _header(self._stored.str, len(ids)) + ids.astype(self._stored).tobytes()

    def _decoded(self, name: str, content: memoryview) -> Ids:
        count = (len(content) - HEADER_BYTES) // self._stored.itemsize
        header = _header(self._stored.str, max(count, 1))
        if content[:HEADER_BYTES] != header or len(content) != HEADER_BYTES + count * self._stored.itemsize:
            raise ValueError(f"{name} is no sentence in ids of type {self.dtype}")
        ids = np.frombuffer(content, self._stored, offset=HEADER_BYTES)
        if (ids == PADDING).any():
            raise ValueError(f"{name} has the id {PADDING}, which stands for padding")
        return ids


@lru_cache(4096)
def _header(dtype: str, count: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(count, dtype))
    return file.getvalue()[:HEADER_BYTES]
