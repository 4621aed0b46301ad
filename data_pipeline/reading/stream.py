"""Streams of micro-batches: endless and exact for training, fixed for validation.

B  samples in a micro-batch
S  tokens in a sequence
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.batches import TokenBatch
from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.reading.mixture import training_mixture, validation_mixture
from data_pipeline.reading.order import Integers, draws_at
from data_pipeline.reading.ranges import SampleRange, merge_ranges
from data_pipeline.shards.dataset import Sample
from data_pipeline.text.collate import TokenCollator
from data_pipeline.text.excerpts import Excerpt, excerpts

STATE_FORMAT = 1


class BatchShare:
    """What one data-parallel rank takes of every global batch, and how that is cut into micro-batches."""

    def __init__(self, data: DataConfig, rank: int, size: int) -> None:
        if data.global_batch_size % (data.micro_batch_size * size):
            raise ValueError(
                f"global_batch_size {data.global_batch_size} is no multiple of micro_batch_size "
                f"{data.micro_batch_size} x {size} data-parallel ranks"
            )
        self._rank = rank
        self._size = size
        self._micro_batch = data.micro_batch_size

    def of(self, global_batch: Integers) -> Integers:
        """This rank's part: each rank takes every `size`-th sample."""
        return global_batch[self._rank :: self._size]

    def micro_batches(self, samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
        """Cut this rank's part of a global batch."""
        for start in range(0, len(samples), self._micro_batch):
            yield samples[start : start + self._micro_batch]


@dataclass(frozen=True)
class _Step:
    """One optimizer step of this rank, ready to be handed out."""

    batches: list[TokenBatch]
    draws: SampleRange
    """Of the whole global batch."""


class BatchStream:
    """Endless stream of optimizer steps of micro-batches for one data-parallel rank.

    The samples of a step follow from the seed, the data and the position alone: micro-batch size, number of
    ranks and prefetching only decide who reads which of them, and when. Damaged samples come masked (zero
    tokens, weight 0) and named.

    Raises DataError when data is missing or not what the configuration says, here and from `next`.
    """

    def __init__(self, data: DataConfig, *, seed: int, data_rank: int, data_size: int) -> None:
        self._data = data
        self._seed = seed
        self._share = BatchShare(data, data_rank, data_size)
        self._mixture = training_mixture(data)
        self._collate = TokenCollator(self._mixture.manifest)
        self._order = self._mixture.order(seed, data.shuffle)
        self._facts = {**self._mixture.facts(), "shuffle": data.shuffle}
        self._position = 0
        self._skip: tuple[SampleRange, ...] = ()
        self._draws: SampleRange = (0, 0)
        self._waited = 0.0
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
        self._ahead: deque[Future[_Step]] = deque()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the order, but the seed: sources, weights, length, shuffling."""
        return hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()

    @property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer that all sources were made with."""
        return self._mixture.tokenizer.sha256

    @property
    def vocabulary_size(self) -> int:
        """Ids of that tokenizer."""
        return self._mixture.tokenizer.vocabulary_size

    @property
    def samples_per_epoch(self) -> int:
        """Samples in all sources together."""
        return sum(len(source) for source in self._mixture.sources)

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        return self

    def __next__(self) -> list[TokenBatch]:
        """The micro-batches of one optimizer step."""
        started = time.perf_counter()
        step = self._take()
        self._waited += time.perf_counter() - started
        self._position += self._data.global_batch_size
        self._draws = step.draws
        return step.batches

    def state(self) -> dict[str, Any]:
        """Where the stream stands after the last step handed out: JSON-able, the same on every rank."""
        return {
            "format": STATE_FORMAT,
            "position": self._position,
            "skip": [list(range_) for range_ in self._skip],
            "seed": self._seed,
            "fingerprint": self.fingerprint,
            "data": self._facts,
        }

    def seek(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken, at the same cost wherever that is.

        Raises DataError, with the field that differs, when it was taken with another seed or other data.
        """
        self._check(state)
        self._drop_ahead()
        self._position = int(state["position"])
        self._skip = merge_ranges(state["skip"])

    def skip(self, ranges: Iterable[Sequence[int]]) -> None:
        """Jump over half-open ranges of draws from here on; draws already handed out are not undone."""
        self._drop_ahead()
        here = int(draws_at(np.array([self._position]), self._skip)[0])
        ahead = [(max(start, here), max(end, here)) for start, end in merge_ranges(ranges)]
        self._skip = merge_ranges([*self._skip, *ahead])

    def draws(self) -> SampleRange:
        """Half-open range of draws that the last step handed out came from."""
        return self._draws

    def excerpts(self, draws: Iterable[int]) -> Iterator[Excerpt]:
        """What the samples of some draws are, for people; the stream stays where it is.

        Raises DataError where they, or the tokenizer beside them, cannot be read.
        """
        self._drop_ahead()  # a dataset is not for concurrent use
        return excerpts(self._mixture, self._order, draws)

    def unskipped(self, ranges: Iterable[SampleRange]) -> list[int]:
        """The draws in these ranges that the stream does not jump over."""
        draws = (draw for start, end in ranges for draw in range(start, end))
        return [draw for draw in draws if not any(start <= draw < end for start, end in self._skip)]

    def take_wait_seconds(self) -> float:
        """Seconds that `next` has waited for data since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """End the background thread and close all files."""
        self._drop_ahead()
        self._reader.shutdown()
        self._mixture.close()

    def _take(self) -> _Step:
        """The step at the current position; those behind it are read meanwhile."""
        global_batch = self._data.global_batch_size
        if not self._data.prefetch_steps:
            return self._read(self._position)
        while len(self._ahead) <= self._data.prefetch_steps:
            self._ahead.append(
                self._reader.submit(self._read, self._position + len(self._ahead) * global_batch)
            )
        try:
            return self._ahead.popleft().result()
        except BaseException:
            self._drop_ahead()
            raise

    def _drop_ahead(self) -> None:
        """Forget what was prefetched, and wait for the read that is under way."""
        while self._ahead:
            pending = self._ahead.pop()
            if not pending.cancel():
                pending.exception()

    def _read(self, position: int) -> _Step:
        draws = draws_at(position + np.arange(self._data.global_batch_size), self._skip)
        mine = self._order.locate(self._share.of(draws))
        sources = self._mixture.sources
        samples = [sources[s].read(i) for s, i in zip(mine.source.tolist(), mine.index.tolist(), strict=True)]
        batches = [self._collate(micro) for micro in self._share.micro_batches(samples)]
        return _Step(batches, (int(draws[0]), int(draws[-1]) + 1))

    def _check(self, state: Mapping[str, Any]) -> None:
        """Raise DataError when `state` belongs to another order."""
        if state.get("format") != STATE_FORMAT:
            raise DataError(
                f"saved data position: format is {state.get('format')!r}, this version reads {STATE_FORMAT}"
            )
        if state["seed"] != self._seed:
            raise DataError(f"saved data position: seed was {state['seed']}, now it is {self._seed}")
        for field in sorted({*state["data"], *self._facts}):
            was, now = state["data"].get(field), self._facts.get(field)
            if was != now:
                raise DataError(
                    f"saved data position: the data differs in {field}: it was {was}, now it is {now}; "
                    "train on the same data, or start a new run"
                )
        if state["fingerprint"] != self.fingerprint:
            raise DataError(
                f"saved data position: fingerprint was {state['fingerprint']}, now {self.fingerprint}"
            )


class ValidationSet:
    """The fixed validation set of one data-parallel rank: the first `samples` samples in shard order.

    The tail of the last step is padded with samples of weight 0, so every rank has the same steps.
    Raises DataError when the data is missing or not what the configuration says.
    """

    def __init__(self, data: DataConfig, *, samples: int | None, data_rank: int, data_size: int) -> None:
        self._share = BatchShare(data, data_rank, data_size)
        self._global_batch = data.global_batch_size
        self._mixture = validation_mixture(data)
        self._collate = TokenCollator(self._mixture.manifest)
        self._ends = np.cumsum([len(source) for source in self._mixture.sources])
        self._samples = min(int(self._ends[-1]), samples or int(self._ends[-1]))
        self.whole = self._samples == int(self._ends[-1])
        """Whether all samples of the sources take part."""

    @property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer that the sources were made with."""
        return self._mixture.tokenizer.sha256

    @property
    def unigram_loss(self) -> float | None:
        """Loss of a unigram model on the whole set, in nats per token; none for several sources."""
        manifests = [source.manifest for source in self._mixture.sources]
        return manifests[0].unigram_cross_entropy if len(manifests) == 1 else None

    def __len__(self) -> int:
        """Steps; equal on every rank."""
        return -(-self._samples // self._global_batch)

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        for step in range(len(self)):
            mine = self._share.of(step * self._global_batch + np.arange(self._global_batch))
            samples = [self._read(number) for number in mine.tolist()]
            yield [self._collate(micro) for micro in self._share.micro_batches(samples)]

    def close(self) -> None:
        """Close all files."""
        self._mixture.close()

    def _read(self, number: int) -> Sample:
        if number >= self._samples:
            return Sample("padding")
        source = int(np.searchsorted(self._ends, number, side="right"))
        first = int(self._ends[source - 1]) if source else 0
        return self._mixture.sources[source].read(number - first)
