"""Streams give micro-batches: endless and exact for training, fixed for validation.

Example: two datasets of text, shared by two data-parallel ranks, of which this is the first.

    stream = BatchStream(TextSource(), config.data, seed=0, data_rank=0, data_size=2)
    for batches in stream:                # the micro-batches of one optimizer step
        ...
        state = stream.state()            # JSON-able; `seek` goes on from there, whatever the number of ranks
        stream.sample_range()             # the draws of this step, in which lists of what to skip count
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batches import Batch, BatchType
from data_pipeline.config import ConfigType, DataConfig
from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as
from data_pipeline.reading.buckets import Integers, by_length
from data_pipeline.reading.excerpts import Excerpt, excerpts
from data_pipeline.reading.mixture import training_mixture, validation_mixture
from data_pipeline.reading.ranges import SampleRange
from data_pipeline.reading.share import BatchShare
from data_pipeline.reading.skips import Skips, draws_of
from data_pipeline.shards.dataset import Sample
from data_pipeline.shards.manifest import ManifestType
from data_pipeline.shown import shown
from data_pipeline.source import Baseline, Source

STATE_FORMAT = 1

MOST_SAMPLES = 2**53
"""No run consumes so many."""


@dataclass(frozen=True)
class _Step(Generic[BatchType]):
    """It is one optimizer step of this rank, ready to be handed out."""

    batches: list[BatchType]
    draws: list[int]
    """Of the whole global batch."""
    own_draws: list[int]
    """Of the rows of these batches."""


class BatchStream(Generic[ManifestType, BatchType]):
    """It is an endless stream of optimizer steps of micro-batches for one data-parallel rank.

    The samples of a step follow from the seed, the data and the position alone: micro-batch size, number of
    ranks and prefetching only decide who reads which of them, and when. Damaged samples come masked (weight 0)
    and named.

    Raises DataError when data is missing or not what the configuration says, here and from `next`.
    """

    def __init__(
        self,
        source: Source[ManifestType, ConfigType, BatchType],
        data: ConfigType,
        *,
        seed: int,
        data_rank: int,
        data_size: int,
    ) -> None:
        self.source: Source[ManifestType, Any, BatchType] = source
        self._data: DataConfig = data
        self._seed = seed
        self._mixture = training_mixture(source, data)
        self._share = BatchShare(data, data_rank, data_size, self._mixture.by_cost)
        self._collate = source.collator(self._mixture.manifest, data)
        self._order = self._mixture.order(seed, data.shuffle)
        self._facts = {**self._mixture.facts(), "shuffle": data.shuffle}
        self._position = 0
        self._skips = Skips(self._order)
        self._handed_out: _Step[BatchType] = _Step([], [], [])
        self._waited = 0.0
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="data")
        self._ahead: deque[Future[_Step[BatchType]]] = deque()

    @property
    def fingerprint(self) -> str:
        """It is the SHA-256 of all that decides the order, but the seed: datasets, weights, shuffling."""
        return hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()

    @property
    def manifest(self) -> ManifestType:
        """It is that of the first dataset; in what decides the samples the others agree with it."""
        return self._mixture.manifest

    @property
    def companions(self) -> dict[str, bytes]:
        """These are the files that a model of this data is used with. Raises DataError where they cannot be read."""
        return self.source.companions(self._mixture.datasets[0])

    @property
    def samples_per_epoch(self) -> int:
        """It counts the samples of all datasets together."""
        return self._mixture.samples

    def __iter__(self) -> Iterator[list[BatchType]]:
        return self

    def __next__(self) -> list[BatchType]:
        """It returns the micro-batches of one optimizer step."""
        started = time.perf_counter()
        step = self._take()
        self._waited += time.perf_counter() - started
        self._position += self._data.global_batch_size
        self._handed_out = step
        return step.batches

    def state(self) -> dict[str, Any]:
        """It returns where the stream stands after the last step handed out: JSON-able, the same on every rank."""
        return {
            "format": STATE_FORMAT,
            "position": self._position,
            **self._skips.state(),
            "seed": self._seed,
            "fingerprint": self.fingerprint,
            "data": self._facts,
        }

    def seek(self, state: Mapping[str, Any]) -> None:
        """It continues where `state` was taken, at the same cost wherever that is.

        Raises DataError, with the field that differs, when it was taken with another seed or other data, and when it
        is no state of a stream.
        """
        with parsed_as(DataError, "saved data position"):
            self._check(state)
            position, skips = state["position"], Skips.of(self._order, state)
            if type(position) is not int or not 0 <= position < MOST_SAMPLES:
                raise ValueError(f"{shown(position)} is no number of samples")
            if skips.for_good and not skips.affordable:  # it would look for the next sample for ever
                raise ValueError("skip_for_good leaves too little of a source")
        self._drop_ahead()
        self._position, self._skips = position, skips

    def skip(self, ranges: Iterable[Sequence[int]]) -> bool:
        """It jumps over half-open ranges of draws from here on, and over their samples in later epochs.

        It returns whether a source cannot spare some of these, so that they come again; draws already handed out are
        not undone.
        """
        self._drop_ahead()
        here = int(self._skips.draws_at(np.array([self._position]))[0])
        before, self._skips = self._skips, self._skips.after(ranges, here)
        return self._skips.for_good == before.for_good and self._skips.ranges != before.ranges

    def own_draws(self) -> Sequence[int]:
        """It returns the draws of this rank's samples in the last step handed out, row by row."""
        return self._handed_out.own_draws

    def sample_range(self) -> SampleRange:
        """It returns the half-open range of draws that the last step handed out came from, on all ranks."""
        draws = self._handed_out.draws
        return (min(draws), max(draws) + 1) if draws else (0, 0)

    def excerpts(self, draws: Iterable[int]) -> Iterator[Excerpt]:
        """It yields what the samples of some draws are, for people; the stream stays where it is.

        Raises DataError where they, or what it takes to describe them, cannot be read.
        """
        self._drop_ahead()  # a dataset is not for concurrent use
        describe = self.source.describer(self._mixture.datasets[0])
        return excerpts(self._mixture, self._order, draws, describe)

    def unskipped(self, ranges: Iterable[SampleRange]) -> list[int]:
        """It returns the draws in these ranges that the stream does not jump over."""
        draws = draws_of(tuple(ranges))
        return list(draws[~self._skips.left_out(draws)].tolist())

    def take_wait_seconds(self) -> float:
        """It returns the seconds that `next` has waited for data since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """It ends the background thread and closes all files."""
        self._drop_ahead()
        self._reader.shutdown()
        self._mixture.close()

    def _take(self) -> _Step[BatchType]:
        """It returns the step at the current position; those behind it are read meanwhile."""
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
        """It forgets what was prefetched, and waits for the read that is under way."""
        while self._ahead:
            pending = self._ahead.pop()
            if not pending.cancel():
                pending.exception()

    def _read(self, position: int) -> _Step[BatchType]:
        draws = self._skips.draws_at(position + np.arange(self._data.global_batch_size))
        if (lengths_NK := self._order.lengths(draws)) is None:
            micro_batches = self._share.spread(draws)
        else:
            alike = by_length(lengths_NK)
            micro_batches = self._share.together(draws[alike], lengths_NK[alike])
        own = np.concatenate(micro_batches)
        mine, datasets = self._order.locate(own), self._mixture.datasets
        places = zip(mine.source.tolist(), mine.index.tolist(), strict=True)
        samples = (
            replace(datasets[source].read(index), chance=chance)
            for (source, index), chance in zip(places, self._order.chances(own).tolist(), strict=True)
        )
        batches = [self._collate(list(islice(samples, len(micro_batch)))) for micro_batch in micro_batches]
        return _Step(batches, draws.tolist(), own.tolist())

    def _check(self, state: Mapping[str, Any]) -> None:
        """It raises DataError when `state` belongs to another order."""
        if state.get("format") != STATE_FORMAT:
            raise DataError(
                f"saved data position: format is {state.get('format')!r}, this version reads {STATE_FORMAT}"
            )
        if state["seed"] != self._seed:
            raise DataError(
                f"run.seed = {self._seed}: the run was begun with seed {state['seed']}, which its data order follows "
                f"from; set run.seed = {state['seed']} to go on, or choose another run.name to begin anew"
            )
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
    """It is the fixed validation set of one data-parallel rank: the first `samples` samples, in shard order or, where
    they differ in length, by that; where micro-batches are cut by cost, each step has short and long ones.

    Samples of weight 0 fill up the last step, or the shortest micro-batches, so that every rank has the same steps.
    Raises DataError when the data is missing or not what the configuration says.
    """

    def __init__(
        self,
        source: Source[ManifestType, ConfigType, BatchType],
        data: ConfigType,
        *,
        samples: int | None,
        data_rank: int,
        data_size: int,
    ) -> None:
        self._global_batch = data.global_batch_size
        self._mixture = validation_mixture(source, data)
        self._share = BatchShare(data, data_rank, data_size, self._mixture.by_cost)
        self.companions: dict[str, bytes] = source.companions(self._mixture.datasets[0])
        """Files that a model of this data is used with."""
        self._collate = source.collator(self._mixture.manifest, data)
        self._samples = min(self._mixture.samples, samples or self._mixture.samples)
        self.whole = self._samples == self._mixture.samples
        """Whether all samples of the datasets take part."""
        self.baseline: Baseline | None = (
            source.baseline(self._mixture.manifest) if len(self._mixture.datasets) == 1 else None
        )
        """A loss on the whole set to compare with; none where the data knows none, and for several datasets."""
        self._lengths = self._padded_lengths()
        self._numbers = self._arranged()

    @property
    def fingerprint(self) -> str:
        """It tells what the set holds."""
        return " ".join(dataset.manifest.fingerprint for dataset in self._mixture.datasets)

    def __len__(self) -> int:
        """It counts the steps; the number is equal on every rank."""
        return -(-self._samples // self._global_batch)

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in range(len(self)):
            yield [
                self._collate([self._read(number) for number in micro_batch.tolist()])
                for micro_batch in self._micro_batches(step)
            ]

    def numbers(self, step: int) -> list[int]:
        """It returns which samples the rows of this rank's micro-batches of a step are, counted in the order of the
        data; numbers beyond the last sample are padding."""
        numbers: list[int] = np.concatenate(self._micro_batches(step)).tolist()
        return numbers

    def places(self) -> list[str]:
        """It returns where the samples of all steps of this rank lie, for people; empty for padding."""
        numbers = [number for step in range(len(self)) for number in self.numbers(step)]
        return [self._mixture.place(number) if number < self._samples else "" for number in numbers]

    def close(self) -> None:
        """It closes all files."""
        self._mixture.close()

    def _padded_lengths(self) -> NDArray[np.int32] | None:
        """It returns the lengths of all samples and of the padding, which is 0; none where samples have one length."""
        lengths_NK = self._mixture.lengths()
        if lengths_NK is None:
            return None
        padding = len(self) * self._global_batch - self._samples
        return np.pad(lengths_NK[: self._samples], ((0, padding), (0, 0)))

    def _arranged(self) -> Integers:
        """It returns the samples of each step, sorted by their lengths if they have any (steps, global batch)."""
        numbers = np.arange(len(self) * self._global_batch)
        if self._lengths is not None and self._mixture.by_cost:
            return by_length(self._lengths).reshape(-1, len(self)).T
        if self._lengths is not None:
            numbers[: self._samples] = by_length(self._lengths[: self._samples])
        return numbers.reshape(len(self), -1)

    def _micro_batches(self, step: int) -> list[Integers]:
        numbers = self._numbers[step]
        if self._lengths is None:
            return self._share.spread(numbers)
        return self._share.together(numbers, self._lengths[numbers])

    def _read(self, number: int) -> Sample:
        return self._mixture.read(number) if number < self._samples else Sample("padding")
