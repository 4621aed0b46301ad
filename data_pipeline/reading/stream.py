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
from typing import Any, Generic

import numpy as np

from data_pipeline.batches import Batch, BatchType
from data_pipeline.config import ConfigType, DataConfig
from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as
from data_pipeline.reading.buckets import by_length
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
    """Of the whole global batch, as it is dealt to the ranks."""


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
        self._share = BatchShare(data, data_rank, data_size)
        self._mixture = training_mixture(source, data)
        self._collate = source.collator(self._mixture.manifest, data)
        self._order = self._mixture.order(seed, data.shuffle)
        self._facts = {**self._mixture.facts(), "shuffle": data.shuffle}
        self._position = 0
        self._skips = Skips(self._order)
        self._draws: list[int] = []
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
        return sum(len(dataset) for dataset in self._mixture.datasets)

    def __iter__(self) -> Iterator[list[BatchType]]:
        return self

    def __next__(self) -> list[BatchType]:
        """It returns the micro-batches of one optimizer step."""
        started = time.perf_counter()
        step = self._take()
        self._waited += time.perf_counter() - started
        self._position += self._data.global_batch_size
        self._draws = step.draws
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

    def draws(self) -> Sequence[int]:
        """It returns the draws of the last step handed out, on all ranks: of n data ranks, the r-th has every n-th from
        the r-th on, in the order of its samples."""
        return self._draws

    def sample_range(self) -> SampleRange:
        """It returns the half-open range of draws that the last step handed out came from, on all ranks."""
        return (min(self._draws), max(self._draws) + 1) if self._draws else (0, 0)

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
        alike = self._order.by_length(draws)
        dealt = draws if alike is None else draws[self._share.together(alike)]
        draws_here = self._share.of(dealt)
        mine, datasets = self._order.locate(draws_here), self._mixture.datasets
        places = zip(mine.source.tolist(), mine.index.tolist(), strict=True)
        samples = [
            replace(datasets[source].read(index), chance=chance)
            for (source, index), chance in zip(places, self._order.chances(draws_here).tolist(), strict=True)
        ]
        batches = [self._collate(micro) for micro in self._share.micro_batches(samples)]
        return _Step(batches, dealt.tolist())

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
    they differ in length, by that.

    The tail of the last step is padded with samples of weight 0, so every rank has the same steps.
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
        self._share = BatchShare(data, data_rank, data_size)
        self._global_batch = data.global_batch_size
        self._mixture = validation_mixture(source, data)
        self.companions: dict[str, bytes] = source.companions(self._mixture.datasets[0])
        """Files that a model of this data is used with."""
        self._collate = source.collator(self._mixture.manifest, data)
        self._ends = np.cumsum([len(dataset) for dataset in self._mixture.datasets])
        self._samples = min(int(self._ends[-1]), samples or int(self._ends[-1]))
        self.whole = self._samples == int(self._ends[-1])
        """Whether all samples of the datasets take part."""
        self.baseline: Baseline | None = (
            source.baseline(self._mixture.manifest) if len(self._mixture.datasets) == 1 else None
        )
        """A loss on the whole set to compare with; none where the data knows none, and for several datasets."""
        self._numbers = np.arange(len(self) * self._global_batch)
        if (lengths_NK := self._mixture.lengths()) is not None:
            self._numbers[: self._samples] = by_length(lengths_NK[: self._samples])
            steps = self._numbers.reshape(len(self), -1)
            self._numbers = np.concatenate([self._share.together(numbers) for numbers in steps])

    @property
    def fingerprint(self) -> str:
        """It tells what the set holds."""
        return " ".join(dataset.manifest.fingerprint for dataset in self._mixture.datasets)

    def __len__(self) -> int:
        """It counts the steps; the number is equal on every rank."""
        return -(-self._samples // self._global_batch)

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in range(len(self)):
            samples = [self._read(number) for number in self.numbers(step)]
            yield [self._collate(micro) for micro in self._share.micro_batches(samples)]

    def numbers(self, step: int) -> list[int]:
        """It returns which samples the rows of this rank's micro-batches of a step are, counted in the order of the
        data; numbers beyond the last sample are padding."""
        whole = self._numbers[step * self._global_batch :][: self._global_batch]
        mine: list[int] = self._share.of(whole).tolist()
        return mine

    def places(self) -> list[str]:
        """It returns where the samples of all steps of this rank lie, for people; empty for padding."""
        return [self._place(number) for step in range(len(self)) for number in self.numbers(step)]

    def close(self) -> None:
        """It closes all files."""
        self._mixture.close()

    def _read(self, number: int) -> Sample:
        if number >= self._samples:
            return Sample("padding")
        dataset, place = self._locate(number)
        return self._mixture.datasets[dataset].read(place)

    def _place(self, number: int) -> str:
        if number >= self._samples:
            return ""
        dataset, place = self._locate(number)
        shard, within = self._mixture.datasets[dataset].place(place)
        return Sample(self._mixture.datasets[dataset].name, shard=shard, number=within).place

    def _locate(self, number: int) -> tuple[int, int]:
        """It returns the number of the dataset, and of the sample in it."""
        dataset = int(np.searchsorted(self._ends, number, side="right"))
        return dataset, number - (int(self._ends[dataset - 1]) if dataset else 0)
