"""Micro-batches that are cut by their cost: as even as can be, the same in every layout, and no sample is lost."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.pairs import pair_numbers, pairs_config, write_pairs

from data_pipeline.config import DataConfig
from data_pipeline.reading.buckets import by_length
from data_pipeline.reading.order import SampleOrder, SourceShape
from data_pipeline.reading.share import BatchShare, counts_by_cost
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.shards.dataset import Dataset
from data_pipeline.source import Buckets
from data_pipeline.translation.batch import PairBatch
from data_pipeline.translation.config import TranslationConfig
from data_pipeline.translation.manifest import TranslationManifest
from data_pipeline.translation.source import TranslationSource

PAIRS, STEP = 576, 24
SLOWEST = 2

Lengths = NDArray[np.int32]


def altered(lengths_NK: Lengths, chances_N: NDArray[np.uint64]) -> Lengths:
    """Every other sample is twice as long."""
    return lengths_NK * (1 + (chances_N % SLOWEST).astype(np.int32))[:, None]


class ByCost(TranslationSource):
    """Pairs whose micro-batches are cut by the length of the source, which chance alters."""

    def buckets(self, dataset: Dataset[TranslationManifest], data: TranslationConfig) -> Buckets:
        return replace(super().buckets(dataset, data), by_cost=True, altered=altered)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 131, first=1000, split="validation")
    return write_pairs(folder, PAIRS)


def cost(lengths_N: Lengths, counts: list[int]) -> int:
    """It returns the largest cost of groups of so many neighbours."""
    groups = np.split(lengths_N.clip(min=1), np.cumsum(counts)[:-1])
    return max(int(group[-1]) * len(group) for group in groups)


@given(lengths=st.lists(st.integers(0, 30), min_size=1, max_size=9), groups=st.integers(1, 9))
def test_no_other_cut_costs_less(lengths: list[int], groups: int) -> None:
    lengths_N, groups = np.sort(np.array(lengths, np.int32)), min(groups, len(lengths))
    counts = counts_by_cost(lengths_N, groups)
    assert len(counts) == groups
    assert min(counts) >= 1
    assert sum(counts) == len(lengths)
    others = [
        [stop - start for start, stop in pairwise((0, *cuts, len(lengths)))]
        for cuts in combinations(range(1, len(lengths)), groups - 1)
    ]
    assert cost(lengths_N, counts) == min(cost(lengths_N, other) for other in others)


@given(samples=st.integers(1, 400), groups=st.integers(1, 400), seed=st.integers(0, 5))
def test_no_group_costs_more_than_the_largest_of_an_even_cut(samples: int, groups: int, seed: int) -> None:
    groups = min(groups, samples)
    lengths_N = np.sort(np.random.default_rng(seed).integers(1, 3000, samples, dtype=np.int32))
    counts = counts_by_cost(lengths_N, groups)
    assert (len(counts), sum(counts), min(counts) >= 1) == (groups, samples, True)
    assert cost(lengths_N, counts) <= lengths_N[-1] * -(-samples // groups)


def steps_from(
    plan: TranslationConfig, state: Any, size: int, steps: int
) -> Iterator[tuple[list[list[PairBatch]], Any]]:
    """The micro-batches of each rank in each step, and the state behind it."""
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(closing(BatchStream(ByCost(), plan, seed=3, data_rank=rank, data_size=size)))
            for rank in range(size)
        ]
        for stream in ranks:
            if state is not None:
                stream.seek(state)
        for _ in range(steps):
            batches = [next(stream) for stream in ranks]
            for stream, own in zip(ranks, batches, strict=True):
                found = stream._order.locate(np.array(stream.own_draws()))
                assert found.index.tolist() == pair_numbers(own), "rows are told by their draws"
                assert stream.sample_range() == ranks[0].sample_range()
            yield batches, ranks[0].state()


layouts = st.sampled_from([(1, 1), (1, 4), (2, 12), (2, 3), (3, 4), (4, 2), (6, 4), (12, 1)])


@settings(max_examples=4)
@given(parts=st.lists(st.tuples(layouts, st.integers(1, 20)), min_size=1, max_size=3))
def test_every_sample_once_an_epoch_under_any_ranks_and_resume_points(
    data: Path, parts: list[tuple[tuple[int, int], int]]
) -> None:
    epoch = PAIRS // STEP
    seen: list[list[int]] = []
    state: Any = None
    for (size, micro), count in [*parts, ((1, 4), epoch)]:
        plan = pairs_config(data, micro_batch_size=micro)
        for batches, behind in steps_from(plan, state, size, min(count, epoch - len(seen))):
            assert {len(own) for own in batches} == {STEP // micro // size}, "micro-batches of each rank"
            seen.append(sorted(number for own in batches for number in pair_numbers(own)))
            state = behind
    with closing(
        BatchStream(TranslationSource(), pairs_config(data), seed=3, data_rank=0, data_size=1)
    ) as even:
        assert seen == [sorted(pair_numbers(next(even))) for _ in range(epoch)], "as without costs"
    assert sorted(number for step in seen for number in step) == list(range(PAIRS))


def test_a_micro_batch_is_the_same_whichever_rank_reads_it(data: Path) -> None:
    """And ranks have about as much to do at the same time, beginning with what is of middling length."""
    plan = pairs_config(data, micro_batch_size=2)
    found = {size: [batches for batches, _ in steps_from(plan, None, size, 8)] for size in (1, 3)}
    whole = [
        [{tuple(pair_numbers([batch])) for own in step for batch in own} for step in found[size]]
        for size in (1, 3)
    ]
    assert whole[0] == whole[1]
    assert len({batch.samples for step in found[1] for own in step for batch in own}) > 2
    for one, three in zip(found[1], found[3], strict=True):
        assert pair_numbers(one[0][:1]) == pair_numbers(three[0][:1])


def test_costs_of_a_step_are_even_once_chance_has_altered_the_lengths(data: Path) -> None:
    """A batch does not show that; what it follows from does."""
    config = pairs_config(data, micro_batch_size=3)
    with closing(BatchStream(ByCost(), config, seed=3, data_rank=0, data_size=1)) as stream:
        for _ in range(PAIRS // STEP):
            batches, order = next(stream), stream._order
            draws = np.array(stream.own_draws())
            lengths_NK = order.lengths(draws)
            plain_NK = order.sources[0].buckets.lengths_NK[order.locate(draws).index]  # type: ignore[union-attr]
            assert lengths_NK.tolist() == altered(plain_NK, order.chances(draws)).tolist()
            groups = np.split(lengths_NK[:, 0], np.cumsum([batch.samples for batch in batches])[:-1])
            costs = [int(group.max()) * len(group) for group in groups]
            assert max(costs) == cost(np.sort(lengths_NK[:, 0]), counts_by_cost(np.sort(lengths_NK[:, 0]), 8))


@pytest.mark.parametrize("samples", [None, 50, 1])
def test_validation_has_each_sample_once_and_steps_are_alike(data: Path, samples: int | None) -> None:
    numbers: dict[int, list[int]] = {}
    for size in (1, 3):
        rows: list[int] = []
        longest = []
        for rank in range(size):
            validation = ValidationSet(
                ByCost(), pairs_config(data), samples=samples, data_rank=rank, data_size=size
            )
            with closing(validation):
                for number, step in enumerate(validation):
                    read = pair_numbers(step)
                    told = [
                        told + 1000 if told < (samples or 131) else -1 for told in validation.numbers(number)
                    ]
                    assert told == read
                    rows += read
                    longest.append(max(batch.source_BS.numel() for batch in step))
        numbers[size] = rows
        assert sorted(row for row in rows if row >= 0) == list(range(1000, 1000 + (samples or 131)))
        assert rows.count(-1) == -(samples or 131) % STEP
        assert max(longest) <= 4 * 40 * 0.75, "less than four of the longest"
    assert sorted(numbers[1]) == sorted(numbers[3])


def waste(lengths_N: Lengths, micro: int, ranks: int, by_cost: bool) -> tuple[float, float, float]:
    """It returns the part of what is computed that is padding, the part of the time of all ranks that is padding or
    waiting, and the largest micro-batch as a multiple of the mean one."""
    size, steps = 16 * micro, 40
    order = SampleOrder(0, (SourceShape("a", len(lengths_N), buckets=Buckets(lengths_N[:, None], micro)),))
    table: dict[str, Any] = {
        "sources": ({"path": "none"},),
        "micro_batch_size": micro,
        "global_batch_size": size,
    }
    plan = DataConfig(kind="any", **table)
    shares = [BatchShare(plan, rank, ranks, by_cost) for rank in range(ranks)]
    costs = []
    for step in range(steps):
        lengths_NK = lengths_N[order.locate(step * size + np.arange(size)).index][:, None]
        alike = by_length(lengths_NK)
        micros = [share.together(alike, lengths_NK[alike]) for share in shares]
        costs.append([[int(lengths_NK[rows].max()) * len(rows) for rows in own] for own in micros])
    heard = sum(lengths_N[order.locate(np.arange(steps * size)).index].tolist())
    costs_SRM = np.array(costs)
    return (
        1 - heard / costs_SRM.sum(),
        1 - heard / (ranks * costs_SRM.max(1).sum()),
        float(costs_SRM.max() / costs_SRM.mean()),
    )


def test_no_micro_batch_is_much_larger_than_the_others_and_ranks_wait_little() -> None:
    """Of utterances as they are spoken, 0.5 to 24 s, most of them short."""
    spoken = np.random.default_rng(0).lognormal(np.log(5), 0.55, 20_000).clip(0.5, 24)
    lengths_N = (100 * spoken).astype(np.int32)
    padding, waiting, largest = waste(lengths_N, 8, 4, by_cost=True)
    _, even_waiting, even_largest = waste(lengths_N, 8, 4, by_cost=False)
    assert padding < 0.06
    assert waiting < 0.13 < 0.2 < even_waiting
    assert largest < 1.5 < 2.5 < even_largest
