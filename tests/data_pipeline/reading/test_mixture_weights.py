"""Weights of a mixture become numbers of draws, of which every source needs one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.reading.weights import CYCLE, apportion, least_weight


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=30), st.integers(1, 5000))
def test_apportion_is_within_one_of_the_exact_share(weights: list[float], total: int) -> None:
    counts = np.array(apportion(weights, total))
    assert counts.sum() == total
    assert np.abs(counts - np.array(weights) / sum(weights) * total).max() < 1 + 1e-6


@pytest.mark.parametrize(
    ("weights", "least"),
    [([10_000, 1], 11), ([1, 1e-5], 0.0011), ([1e6, 1, 1e5, 2], 1200), ([5e-324, 1e-318], 1e-321)],
    ids=str,
)
def test_a_weight_that_is_enough_is_known(weights: list[float], least: float) -> None:
    found = least_weight(weights)
    assert found == pytest.approx(least, rel=0.01)
    assert 0 in apportion(weights, CYCLE)


def test_more_sources_than_a_cycle_has_draws_have_no_weights_that_are_enough() -> None:
    assert least_weight([1.0] * CYCLE) is not None
    assert least_weight([1.0] * (CYCLE + 1)) is None


@given(st.lists(st.sampled_from([1e-9, 1e-4, 0.3, 1, 2000]) | st.floats(1e-6, 1e6), min_size=1, max_size=40))
def test_with_the_least_weight_each_source_is_drawn(weights: list[float]) -> None:
    counts, least = apportion(weights, CYCLE), least_weight(weights)
    if least is not None:
        raised = [weight if count else least for weight, count in zip(weights, counts, strict=True)]
        assert all(apportion(raised, CYCLE))
