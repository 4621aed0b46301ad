"""What is left out: ranges of draws, and their samples in every later epoch, told by going through all draws."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.reading.order import SampleOrder, SourceShape, permute, permute_back
from data_pipeline.reading.skips import SPARED, Skips
from data_pipeline.reading.weights import CYCLE

DRAWS = 3 * CYCLE

sources = st.lists(
    st.tuples(st.integers(40, 300), st.floats(0.3, 3, allow_nan=False)), min_size=1, max_size=3
).map(
    lambda shapes: tuple(SourceShape(f"source{n}", size, weight) for n, (size, weight) in enumerate(shapes))
)
ranges = st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 12)), min_size=1, max_size=3).map(
    lambda pairs: [(start, start + length) for start, length in pairs]
)


@given(length=st.integers(1, 5000), key=st.binary(max_size=8))
def test_a_permutation_can_be_taken_back(length: int, key: bytes) -> None:
    places = np.arange(length)
    np.testing.assert_array_equal(permute_back(permute(places, length, key), length, key), places)


@settings(max_examples=30, deadline=None)
@given(sources=sources, shuffle=st.booleans(), start=st.integers(0, 10**9))
def test_a_sample_leads_back_to_its_turn(sources: tuple[SourceShape, ...], shuffle: bool, start: int) -> None:
    order, draws = SampleOrder(5, sources, shuffle), start + np.arange(200)
    found = order.locate(draws)
    for draw, source, epoch, index in zip(draws, found.source, found.epoch, found.index, strict=True):
        turn = order.turns_of(int(source), int(epoch), np.array([index]))
        assert turn.tolist() == [order.turns_before(int(draw))[source]]
        assert sum(order.turns_before(int(draw))) == draw


@settings(max_examples=40, deadline=None)
@given(sources=sources, shuffle=st.booleans(), ranges=ranges)
def test_positions_lead_past_all_that_is_left_out(
    sources: tuple[SourceShape, ...], shuffle: bool, ranges: list[tuple[int, int]]
) -> None:
    order = SampleOrder(5, sources, shuffle)
    skips = Skips(order).after(ranges, here=0)
    found = order.locate(np.arange(DRAWS))
    samples = list(zip(found.source.tolist(), found.index.tolist(), strict=True))
    gone, kept = set(), []
    for draw, sample in enumerate(samples):
        if sample in gone or any(start <= draw < end for start, end in skips.ranges):
            if any(start <= draw < end for start, end in skips.for_good):
                gone.add(sample)
            continue
        kept.append(draw)
    assert skips.draws_at(np.arange(len(kept))).tolist() == kept
    assert np.flatnonzero(~skips.left_out(np.arange(DRAWS))).tolist() == kept
    far = np.arange(len(kept) - 5, len(kept))
    again = Skips.of(order, json.loads(json.dumps(skips.state())))
    assert again.draws_at(far).tolist() == kept[-5:], "without having been asked for what comes before"


@given(start=st.integers(0, 500), length=st.integers(0, 200), more=st.integers(0, 100))
def test_enough_stays_of_every_source(start: int, length: int, more: int) -> None:
    order = SampleOrder(5, (SourceShape("a", 100), SourceShape("b", 150, 2.0)))
    skips = Skips(order).after([(start, start + length), (start + 300, start + 300 + more)], here=0)
    assert skips.affordable
    found = order.locate(np.array([d for s, e in skips.for_good for d in range(s, e)], dtype=np.int64))
    for number, source in enumerate(order.sources):
        assert len(set(found.index[found.source == number])) <= (1 - SPARED) * source.samples


def test_what_is_left_out_later_moves_nothing_that_came_before() -> None:
    order = SampleOrder(5, (SourceShape("a", 100),))
    skips = Skips(order).after([(10, 20)], here=0)
    here = int(skips.draws_at(np.array([250]))[0])
    more = skips.after([(0, 30), (here, here + 7)], here)
    assert more.draws_at(np.arange(250)).tolist() == skips.draws_at(np.arange(250)).tolist()
    assert more.for_good == ((10, 20), (here, here + 7))
