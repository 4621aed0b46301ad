"""Documents become token ids in several processes, in order."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.text.blocks import token_type
from data_pipeline.text.tokenizer import Tokenizer

CHUNK_CHARACTERS = 1 << 19
"""Text that a worker gets at once."""

CHUNKS_AHEAD = 2
"""Chunks that wait or are worked on, per worker."""


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
    if workers == 1:
        yield from ((chunk, encode(chunk.texts)) for chunk in chunks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    pending: deque[tuple[ChunkType, Future[list[Ids]]]] = deque()
    try:
        for chunk in chunks:
            with _interrupts_held():
                pending.append((chunk, pool.submit(encode, chunk.texts)))
            if len(pending) > CHUNKS_AHEAD * workers:
                yield _result(pending)
        while pending:
            yield _result(pending)
    except BrokenProcessPool as error:
        raise DataError("a worker process died, perhaps for want of memory; use fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _result(pending: deque[tuple[ChunkType, Future[list[Ids]]]]) -> tuple[ChunkType, list[Ids]]:
    chunk, ids = pending.popleft()
    return chunk, ids.result()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """It holds Ctrl-C back while workers are started: they inherit it held, and none dies of it before it is ready.

    The pool of Python 3.11.2 can wait for such a worker for ever when it is shut down.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _start_worker() -> None:
    """It leaves Ctrl-C to the parent, and has the worker end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
