"""Samples of like lengths come together, and the order stays a bijection that can be sought and taken back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.reading.buckets import RUNS, by_length, dealt
from data_pipeline.reading.order import SampleOrder, SourceShape
from data_pipeline.reading.skips import Skips
from data_pipeline.source import Buckets


def shape(name: str, samples: int, size: int, sides: int = 2, weight: float = 1.0) -> SourceShape:
    lengths = np.random.default_rng(samples).integers(1, 60, (samples, 1))
    noise = np.random.default_rng(size).integers(0, 5, (samples, sides))
    return SourceShape(name, samples, weight, Buckets((lengths + noise).astype(np.int32), size))


shapes = st.builds(shape, st.sampled_from("ab"), st.integers(1, 700), st.integers(1, 4), st.integers(1, 3))


@settings(max_examples=40)
@given(source=shapes, seed=st.integers(0, 3), epoch=st.integers(0, 3))
def test_each_sample_once_an_epoch_and_back_to_its_turn(source: SourceShape, seed: int, epoch: int) -> None:
    order, turns = SampleOrder(seed, (source,)), epoch * source.samples + np.arange(source.samples)
    found = order.locate(turns)
    assert set(found.epoch.tolist()) == {epoch}
    assert sorted(found.index) == list(range(source.samples))
    assert order.turns_of(0, epoch, found.index).tolist() == turns.tolist()


@settings(max_examples=20)
@given(sources=st.tuples(shapes, shapes), draws=st.lists(st.integers(0, 10**9), min_size=1, max_size=30))
def test_any_draw_is_found_without_those_before_it(
    sources: tuple[SourceShape, ...], draws: list[int]
) -> None:
    found = SampleOrder(1, sources).locate(np.array(draws))
    for number, draw in enumerate(draws):
        alone = SampleOrder(1, sources).locate(np.array([draw]))
        assert alone.index[0] == found.index[number]
        assert alone.source[0] == found.source[number]


@given(runs=st.integers(1, 300), start=st.integers(0, 10**6))
def test_runs_are_dealt_once_each(runs: int, start: int) -> None:
    assert sorted(dealt(runs, start)) == list(range(runs))


def test_a_few_runs_are_of_all_lengths() -> None:
    runs = dealt(RUNS, 5)
    means = [runs[first : first + 4].mean() for first in range(0, RUNS, 4)]
    assert np.std(means) < 1e-9, "a short run and the long one that makes up for it"
    assert {run // (RUNS // 8) for run in runs[:16]} == set(range(8))


def test_windows_are_not_all_dealt_alike() -> None:
    assert dealt(RUNS, 5).tolist() != dealt(RUNS, 6).tolist()


def test_neighbours_by_length_are_alike_on_both_sides() -> None:
    lengths_NK = np.array([[3, 1], [2, 9], [3, 9], [2, 1], [4, 1], [4, 9]], np.int32)
    assert lengths_NK[by_length(lengths_NK)].tolist() == [[2, 9], [2, 1], [3, 1], [3, 9], [4, 9], [4, 1]]


def test_runs_of_an_epoch_hold_like_lengths() -> None:
    source = shape("a", 4096, 16, sides=1)
    assert source.buckets is not None
    lengths = source.buckets.lengths_NK[SampleOrder(0, (source,)).locate(np.arange(4096)).index, 0]
    assert np.ptp(lengths.reshape(-1, 16), axis=1).mean() < 2
    assert np.ptp(lengths) > 50


def test_kept_in_the_order_of_the_shards_nothing_is_arranged() -> None:
    order = SampleOrder(0, (shape("a", 50, 4),), shuffle=False)
    assert order.locate(np.arange(50)).index.tolist() == list(range(50))


@pytest.mark.parametrize("position", [0, 150, 3000])
def test_what_is_left_out_for_good_does_not_come_again(position: int) -> None:
    order = SampleOrder(3, (shape("a", 300, 4), shape("b", 200, 4)))
    gone = order.locate(np.arange(20, 40))
    skips = Skips(order).after([(20, 40)], here=0)
    found = order.locate(skips.draws_at(position + np.arange(2000)))
    left = set(zip(found.source.tolist(), found.index.tolist(), strict=True))
    assert not left & set(zip(gone.source.tolist(), gone.index.tolist(), strict=True))
    assert len(left) == 480
    far = Skips.of(order, skips.state()).draws_at(position + np.arange(1990, 2000))
    assert far.tolist() == skips.draws_at(position + np.arange(2000))[-10:].tolist()


@given(samples=st.integers(40, 700), size=st.integers(2, 9))
def test_a_run_is_whole_in_every_epoch(samples: int, size: int) -> None:
    """Runs are counted from the first sample of the first epoch, as micro-batches are."""
    lengths_N = np.random.default_rng(samples).integers(1, 100, samples)
    buckets = Buckets(lengths_N[:, None].astype(np.int32), size)
    order = SampleOrder(1, (SourceShape("a", samples, buckets=buckets),))
    found = order.locate(np.arange(4 * samples // size * size))
    spread = np.ptp(lengths_N[found.index].reshape(-1, size), axis=1)
    # Lengths are up to 99, and a run has some size / window of them; twice as many where an epoch ends in it.
    assert np.median(spread) <= 99 * size / min(samples, RUNS * size) * 4 + 1
    assert (spread > 50).mean() <= 0.02
