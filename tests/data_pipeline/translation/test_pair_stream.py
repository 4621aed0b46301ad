"""Every pair comes once an epoch, under any number of ranks and wherever a run is taken up, with little padding."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pairs import lengths_of, pair_numbers, pairs_config, write_pairs

from data_pipeline.__main__ import main
from data_pipeline.errors import DataError
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.translation.batch import PairBatch
from data_pipeline.translation.config import TranslationConfig
from data_pipeline.translation.manifest import TranslationManifest
from data_pipeline.translation.source import TranslationSource

PAIRS, STEP = 576, 24

Stream = BatchStream[TranslationManifest, PairBatch]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder, 37, first=1000, split="validation")
    return write_pairs(folder, PAIRS)


def open_stream(plan: TranslationConfig, rank: int = 0, size: int = 1) -> Stream:
    return BatchStream(TranslationSource(), plan, seed=3, data_rank=rank, data_size=size)


def steps_from(
    plan: TranslationConfig, state: Any, size: int, steps: int
) -> Iterator[tuple[list[PairBatch], Any]]:
    """The micro-batches of all ranks of each step, and the state behind it."""
    with ExitStack() as stack:
        ranks = [stack.enter_context(closing(open_stream(plan, rank, size))) for rank in range(size)]
        for stream in ranks:
            if state is not None:
                stream.seek(state)
        for _ in range(steps):
            batches = [batch for stream in ranks for batch in next(stream)]
            states = [stream.state() for stream in ranks]
            assert all(state == states[0] for state in states)
            yield batches, states[0]


layouts = st.sampled_from([(1, 1), (1, 4), (2, 12), (2, 3), (3, 4), (4, 2), (6, 4), (12, 1)])


@settings(max_examples=10)
@given(parts=st.lists(st.tuples(layouts, st.integers(1, 30)), min_size=1, max_size=4))
def test_every_pair_once_an_epoch_under_any_ranks_and_resume_points(
    data: Path, parts: list[tuple[tuple[int, int], int]]
) -> None:
    """Each part of the run goes on with other ranks and micro-batches from the state of the last."""
    epochs = 2 * PAIRS // STEP
    parts = [*parts, ((1, 4), epochs)]
    seen: list[list[int]] = []
    state: Any = None
    for (size, micro), count in parts:
        plan = pairs_config(data, micro_batch_size=micro)
        for batches, behind in steps_from(plan, state, size, min(count, epochs - len(seen))):
            seen.append(sorted(pair_numbers(batches)))
            state = behind
    one = [sorted(pair_numbers(batches)) for batches, _ in steps_from(pairs_config(data), None, 1, epochs)]
    assert seen == one, "the pairs of a step follow from its position alone"
    for epoch in (seen[: epochs // 2], seen[epochs // 2 :]):
        assert sorted(number for step in epoch for number in step) == list(range(PAIRS))


def test_a_micro_batch_is_the_same_whichever_rank_reads_it(data: Path) -> None:
    """And all ranks read like lengths at the same time, those of the middle first."""
    plan = pairs_config(data)
    one = {tuple(pair_numbers([batch])) for batches, _ in steps_from(plan, None, 1, 5) for batch in batches}
    three = {tuple(pair_numbers([batch])) for batches, _ in steps_from(plan, None, 3, 5) for batch in batches}
    assert one == three
    with ExitStack() as stack:
        ranks = [stack.enter_context(closing(open_stream(plan, rank, 3))) for rank in range(3)]
        steps = [next(stream) for stream in ranks]
    longest = [[batch.source_BS.shape[1] for batch in step] for step in steps]
    assert min(first for first, _ in longest) >= max(second for _, second in longest)


def test_the_first_micro_batch_is_that_of_the_middle_for_any_number_of_ranks(data: Path) -> None:
    plan = pairs_config(data, micro_batch_size=4)
    firsts = set()
    for size in (1, 2, 3, 6):
        with closing(open_stream(plan, 0, size)) as stream:
            firsts.add(tuple(pair_numbers(next(stream)[:1])))
    assert len(firsts) == 1
    with closing(open_stream(plan)) as stream:
        lengths = [batch.source_BS.shape[1] for batch in next(stream)]
    assert sorted(lengths)[2] <= lengths[0] <= sorted(lengths)[3]


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (1, 3)])
def test_draws_are_told_in_the_order_of_the_samples(data: Path, rank: int, size: int) -> None:
    """A planted fault finds its samples by them."""
    with closing(open_stream(pairs_config(data), rank, size)) as stream:
        numbers = pair_numbers(next(stream))
        assert stream._order.locate(np.array(stream.own_draws())).index.tolist() == numbers
        assert len(set(stream.own_draws())) == STEP // size
        assert stream.sample_range() == (0, STEP)


def test_pairs_are_what_lies_in_the_shards(data: Path) -> None:
    with closing(open_stream(pairs_config(data))) as stream:
        for batch in next(stream):
            for row, number in enumerate(pair_numbers([batch])):
                source, target = lengths_of(number)
                assert batch.source_BS[row, : source - 1].tolist() == [number + 10] * (source - 1)
                assert batch.source_BS[row, source - 1 :].tolist() == [1] + [0] * (
                    batch.source_BS.shape[1] - source
                )
                assert batch.targets_BT[row, :target].tolist() == [number + 10] * (target - 1) + [1]
                assert batch.inputs_BT[row, :target].tolist() == [1] + [number + 10] * (target - 1)
                assert batch.weights_BT[row].sum() == target
                assert batch.weights_BT[row, :target].sum() == target


def test_a_mixture_keeps_its_weights_and_leaves_out_what_it_is_told_to(data: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "b", 90, first=2000)
    plan = pairs_config(data, tmp_path / "b", weights=(3, 1))
    with closing(open_stream(plan)) as stream:
        plain = [pair_numbers(next(stream)) for _ in range(3)]
    with closing(open_stream(plan)) as stream:
        stream.skip([(STEP, 2 * STEP)])
        steps = [pair_numbers(next(stream)) for _ in range(3 * 1000 // STEP)]
    assert steps[0] == plain[0]
    assert steps[1] == plain[2]
    read = np.array([number for step in steps for number in step])
    assert not {*read.tolist()} & {*plain[1]}, "in later epochs neither"
    assert abs((read >= 2000).mean() - 0.25) < 0.02
    first = read[read < 2000][: PAIRS - STEP]
    assert len({*first.tolist()}) == len(first), "no pair twice before all have come"


def test_validation_has_each_pair_once(data: Path) -> None:
    for size in (1, 3):
        seen: list[int] = []
        for rank in range(size):
            plan = pairs_config(data)
            with closing(
                ValidationSet(TranslationSource(), plan, samples=None, data_rank=rank, data_size=size)
            ) as validation:
                seen += [number for step in validation for number in pair_numbers(step)]
        assert sorted(number for number in seen if number >= 0) == list(range(1000, 1037))
        assert seen.count(-1) == 2 * STEP - 37


def test_another_bucket_size_is_another_order(data: Path) -> None:
    with closing(open_stream(pairs_config(data))) as stream:
        state = stream.state()
    with (
        closing(open_stream(pairs_config(data, bucket_size=8))) as stream,
        pytest.raises(DataError, match="the data differs in bucket_size: it was 4, now it is 8"),
    ):
        stream.seek(state)


def test_seeking_costs_the_same_wherever_it_leads(data: Path) -> None:
    """No more windows are arranged for the billionth step than for the first."""
    with closing(open_stream(pairs_config(data))) as stream:
        state = stream.state()
        stream.seek({**state, "position": 10**12 * STEP})
        next(stream)
        arrangement = stream._order._arrangements[0]
        assert arrangement is not None
        assert arrangement._window.cache_info().misses <= 2


def padding_of(batches: list[PairBatch]) -> float:
    read = sum(batch.source_BS.numel() + batch.inputs_BT.numel() for batch in batches)
    return 1 - sum(batch.tokens for batch in batches) / read


def test_little_of_a_batch_is_padding(data: Path) -> None:
    arranged = [
        batch for batches, _ in steps_from(pairs_config(data), None, 1, PAIRS // STEP) for batch in batches
    ]
    plan = pairs_config(data, shuffle=False, micro_batch_size=STEP)
    kept = [batch for batches, _ in steps_from(plan, None, 1, PAIRS // STEP) for batch in batches]
    assert padding_of(arranged) < 0.1 < 0.3 < padding_of(kept)


@pytest.mark.slow
def test_at_most_15_percent_of_multi30k_is_padding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(os.environ.get("SUREFOOT_DATA", Path(__file__).parents[4] / "shared/data"))
    raw = root / "translation/multi30k"
    if not raw.exists():
        pytest.skip("SUREFOOT_DATA does not name a folder with translations")
    words = ["translation", "--out", str(tmp_path / "data"), "--workers", "1"]
    for side, language in (("source", "en"), ("target", "de")):
        words += [f"--{side}", str(raw / f"train.{language}.gz")]
        words += [f"--validation-{side}", str(raw / f"val.{language}.gz")]
    assert main(words) == 0
    settings: dict[str, object] = {"micro_batch_size": 64, "global_batch_size": 128, "bucket_size": 64}
    plan = pairs_config(tmp_path / "data", max_source_length=64, max_target_length=64, **settings)
    steps = [batches for batches, _ in steps_from(plan, None, 1, 3 * 29_000 // 128)]
    tokens = [sum(batch.tokens for batch in step) for step in steps]
    padding, spread = (
        padding_of([batch for step in steps for batch in step]),
        np.std(tokens) / np.mean(tokens),
    )
    with capsys.disabled():
        print(
            f"\nMulti30k, micro-batches of 64 pairs, steps of 128, three epochs: {padding:.1%} of the tokens are "
            f"padding, a step has {np.mean(tokens):,.0f} tokens with a standard deviation of {spread:.1%}"
        )
    assert padding <= 0.15
    assert spread <= 0.2
