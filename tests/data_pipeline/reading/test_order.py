"""The order is a bijection onto the samples of every epoch, whichever way it is cut up."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.reading.order import SampleOrder, SourceShape, draws_at, permute
from data_pipeline.reading.ranges import merge_ranges
from data_pipeline.reading.weights import CYCLE

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=6).map(
    lambda pairs: [(start, start + length) for start, length in pairs]
)
mixtures = st.lists(
    st.tuples(st.integers(30, 300), st.floats(0.05, 20, allow_nan=False)), min_size=1, max_size=4
).map(
    lambda sources: tuple(SourceShape(f"source{n}", size, weight) for n, (size, weight) in enumerate(sources))
)


@given(length=st.integers(1, 5000), key=st.binary(max_size=8))
def test_permute_is_a_permutation(length: int, key: bytes) -> None:
    assert sorted(permute(np.arange(length), length, key)) == list(range(length))


def test_permute_reaches_every_place_about_equally_often() -> None:
    length, keys = 10, 1000
    hits = np.zeros((length, length))
    for key in range(keys):
        hits[np.arange(length), permute(np.arange(length), length, str(key).encode())] += 1
    expected = keys / length
    chi_square = ((hits - expected) ** 2 / expected).sum()
    assert chi_square < 150  # 81 degrees of freedom; above 150 with probability below 1e-5


def test_permute_of_a_huge_range_needs_no_table() -> None:
    places = permute(np.arange(1000), 10**12, b"key")
    assert len(set(places.tolist())) == 1000
    assert 0 <= places.min() < 10**11
    assert 9 * 10**11 < places.max() < 10**12


@given(samples=st.integers(1, 200), epoch=st.integers(0, 5), seed=st.integers(0, 3), shuffle=st.booleans())
def test_each_sample_once_per_epoch(samples: int, epoch: int, seed: int, shuffle: bool) -> None:
    order = SampleOrder(seed, (SourceShape("a", samples),), shuffle)
    found = order.locate(np.arange(epoch * samples, (epoch + 1) * samples))
    assert set(found.epoch.tolist()) == {epoch}
    assert sorted(found.index) == list(range(samples))


@settings(max_examples=20)
@given(sources=mixtures, seed=st.integers(0, 3), shuffle=st.booleans())
def test_each_source_of_a_mixture_runs_through_its_epochs(
    sources: tuple[SourceShape, ...], seed: int, shuffle: bool
) -> None:
    found = SampleOrder(seed, sources, shuffle).locate(np.arange(2 * CYCLE))
    for number, source in enumerate(sources):
        mine = found.source == number
        assert (np.diff(found.epoch[mine]) >= 0).all()
        for epoch in range(int(found.epoch[mine].max())):
            assert sorted(found.index[mine & (found.epoch == epoch)]) == list(range(source.samples))


@settings(max_examples=20)
@given(sources=mixtures, shuffle=st.booleans(), cycle=st.integers(0, 10**9))
def test_every_cycle_keeps_to_the_weights(
    sources: tuple[SourceShape, ...], shuffle: bool, cycle: int
) -> None:
    found = SampleOrder(0, sources, shuffle).locate(np.arange(cycle * CYCLE, (cycle + 1) * CYCLE))
    counts = np.bincount(found.source, minlength=len(sources))
    shares = np.array([source.weight for source in sources])
    assert np.abs(counts - shares / shares.sum() * CYCLE).max() < 1


@settings(max_examples=20)
@given(sources=mixtures, start=st.integers(0, 10**12), picks=st.permutations(range(40)))
def test_a_draw_does_not_depend_on_what_else_is_asked(
    sources: tuple[SourceShape, ...], start: int, picks: list[int]
) -> None:
    order = SampleOrder(7, sources)
    together = order.locate(start + np.arange(40))
    apart = order.locate(start + np.array(picks))
    for field in ("source", "epoch", "index"):
        np.testing.assert_array_equal(getattr(apart, field), getattr(together, field)[picks])


def test_epochs_seeds_and_data_shuffle_differently() -> None:
    def first_epochs(seed: int, fingerprint: str) -> list[int]:
        return SampleOrder(seed, (SourceShape(fingerprint, 100),)).locate(np.arange(200)).index.tolist()

    reference = first_epochs(0, "a")
    assert reference[:100] != reference[100:]
    assert reference != first_epochs(1, "a")
    assert reference != first_epochs(0, "b")


def test_the_order_is_the_same_in_every_version() -> None:
    """A change of these numbers breaks the resume of every run that is under way."""
    order = SampleOrder(5, (SourceShape("a", 1000, 3), SourceShape("b", 10, 1)))
    found = order.locate(np.array([0, 17, 18, 1500, 10**6 + 3, 10**9 + 7]))
    assert found.source.tolist() == [0, 1, 1, 1, 0, 0]
    assert found.epoch.tolist() == [0, 0, 0, 37, 750, 750000]
    assert found.index.tolist() == [519, 6, 3, 9, 244, 937]


def test_without_shuffling_shard_order_is_kept_and_sources_are_spread_evenly() -> None:
    order = SampleOrder(0, (SourceShape("a", 1000, 3), SourceShape("b", 1000, 1)), shuffle=False)
    found = order.locate(np.arange(400))
    assert found.source.reshape(100, 4).sum(axis=1).tolist() == [1] * 100
    for source, count in enumerate((300, 100)):
        assert found.index[found.source == source].tolist() == list(range(count))


def test_a_weight_that_would_never_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"source 1 is below 0\.001"):
        SampleOrder(0, (SourceShape("a", 10, 1), SourceShape("b", 10, 1e-5)))


def test_shares_that_only_rounding_tells_apart_stay_as_they_were() -> None:
    """Runs from before the sum was handed in go on with their order; a sum from left to right gives another one."""
    weights = (2.1, 1.8, 2.3, 1.9, 2.7, 0.9, 1.4, 1.3)
    order = SampleOrder(0, tuple(SourceShape(str(weight), 10, weight) for weight in weights))
    assert order.counts == (146, 125, 160, 132, 188, 62, 97, 90)


@given(ranges)
def test_merged_ranges_are_the_same_set_sorted_and_apart(pairs: list[tuple[int, int]]) -> None:
    merged = merge_ranges(pairs)
    assert {i for a, b in merged for i in range(a, b)} == {i for a, b in pairs for i in range(a, b)}
    assert all(a < b for a, b in merged)
    assert all(before[1] < after[0] for before, after in pairwise(merged))


@pytest.mark.parametrize("bad", [(-1, 3), (5, 4)])
def test_an_impossible_range_is_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="no range of draws"):
        merge_ranges([bad])


@given(ranges, st.integers(0, 50))
def test_skipped_draws_are_jumped_over(pairs: list[tuple[int, int]], start: int) -> None:
    skip = merge_ranges(pairs)
    skipped = {i for a, b in skip for i in range(a, b)}
    kept = [draw for draw in range(300) if draw not in skipped]
    assert draws_at(np.arange(start, start + 40), skip).tolist() == kept[start : start + 40]
