"""This is what a training loop uses of a stream of batches, and a stream that goes around another one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from data_pipeline.batches import Batch
from data_pipeline.reading.excerpts import Excerpt
from data_pipeline.reading.ranges import SampleRange


class Batches(Protocol):
    """It yields endless optimizer steps of micro-batches, and has a position that can be saved and sought;
    `BatchStream` has the words behind each method."""

    @property
    def fingerprint(self) -> str: ...
    def __iter__(self) -> Iterator[Sequence[Batch]]: ...
    def __next__(self) -> Sequence[Batch]: ...
    def state(self) -> dict[str, Any]: ...
    def seek(self, state: Mapping[str, Any]) -> None: ...
    def skip(self, ranges: Iterable[Sequence[int]]) -> bool: ...
    def own_draws(self) -> Sequence[int]: ...
    def sample_range(self) -> SampleRange: ...
    def unskipped(self, ranges: Iterable[SampleRange]) -> list[int]: ...
    def excerpts(self, draws: Iterable[int]) -> Iterator[Excerpt]: ...
    def take_wait_seconds(self) -> float: ...
    def close(self) -> None: ...


class WrappedBatches:
    """It passes everything on to the stream within; a subclass alters what it is there to alter."""

    def __init__(self, within: Batches) -> None:
        self.within = within

    @property
    def fingerprint(self) -> str:
        return self.within.fingerprint

    def __iter__(self) -> Iterator[Sequence[Batch]]:
        return self

    def __next__(self) -> Sequence[Batch]:
        return next(self.within)

    def state(self) -> dict[str, Any]:
        return self.within.state()

    def seek(self, state: Mapping[str, Any]) -> None:
        self.within.seek(state)

    def skip(self, ranges: Iterable[Sequence[int]]) -> bool:
        return self.within.skip(ranges)

    def own_draws(self) -> Sequence[int]:
        return self.within.own_draws()

    def sample_range(self) -> SampleRange:
        return self.within.sample_range()

    def unskipped(self, ranges: Iterable[SampleRange]) -> list[int]:
        return self.within.unskipped(ranges)

    def excerpts(self, draws: Iterable[int]) -> Iterator[Excerpt]:
        return self.within.excerpts(draws)

    def take_wait_seconds(self) -> float:
        return self.within.take_wait_seconds()

    def close(self) -> None:
        self.within.close()
