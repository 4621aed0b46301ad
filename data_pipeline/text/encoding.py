"""Documents become token ids in several processes, in order."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.preparing.workers import worked_in_order
from data_pipeline.text.blocks import token_type
from data_pipeline.text.tokenizer import Tokenizer

CHUNK_CHARACTERS = 1 << 19
"""Text that a worker gets at once."""


@dataclass(frozen=True)
class Chunk:
    """It holds some documents, and how many source bytes they took."""

    texts: tuple[str, ...]
    consumed: int = 0


ChunkType = TypeVar("ChunkType", bound=Chunk)

Ids = NDArray[np.unsignedinteger]

Encode = Callable[[tuple[str, ...]], list[Ids]]
"""It makes ids of the texts of a chunk, wherever it is sent."""


def encode_texts(tokenizer: Tokenizer, texts: tuple[str, ...]) -> list[Ids]:
    """It returns the ids of each text, in the smallest type."""
    dtype = token_type(tokenizer.vocabulary_size)
    return [np.array(tokenizer.encode(text), dtype) for text in texts]


def encode_chunks(
    encode: Encode, chunks: Iterable[ChunkType], workers: int
) -> Iterator[tuple[ChunkType, list[Ids]]]:
    """It encodes in `workers` processes (1: in this one); results come in the order of `chunks`.

    Raises DataError when a worker dies.
    """
    return worked_in_order(encode, ((chunk, chunk.texts) for chunk in chunks), workers)
