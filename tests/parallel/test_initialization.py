"""Initial weights do not depend on how they are cut."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from parallel.initialization import ROWS_PER_BLOCK, Normal, derive_seed, fill_columns, fill_rows

ROWS, COLUMNS = 2 * ROWS_PER_BLOCK + 37, 6
INIT = Normal(seed=5, name="weight", std=0.02)


@given(st.integers(0, ROWS - 1), st.integers(1, ROWS))
def test_any_rows_are_rows_of_the_whole(start: int, count: int) -> None:
    stop = min(start + count, ROWS)
    whole = INIT.rows(0, ROWS, ROWS, COLUMNS)
    assert torch.equal(INIT.rows(start, stop, ROWS, COLUMNS), whole[start:stop])


def test_columns_are_columns_of_the_whole() -> None:
    shard = torch.empty(ROWS, 2)
    fill_columns(shard, INIT, num_columns=COLUMNS, start=3)
    assert torch.equal(shard, INIT.rows(0, ROWS, ROWS, COLUMNS)[:, 3:5])


def test_rows_of_the_padding_are_zero() -> None:
    shard = torch.full((10, COLUMNS), 7.0)
    fill_rows(shard, INIT, num_rows=ROWS, start=ROWS - 10, valid_rows=ROWS - 4)
    assert shard[:6].all()
    assert not shard[6:].any()


def test_moments() -> None:
    values = Normal(1, "large", 0.02).rows(0, 4096, 4096, 256)
    assert abs(values.mean()) < 1e-4
    assert abs(values.std() / 0.02 - 1) < 1e-2


def test_tensors_of_other_names_and_seeds_differ() -> None:
    reference = INIT.rows(0, 4, ROWS, COLUMNS)
    assert not torch.equal(reference, Normal(5, "other", 0.02).rows(0, 4, ROWS, COLUMNS))
    assert not torch.equal(reference, Normal(6, "weight", 0.02).rows(0, 4, ROWS, COLUMNS))


def test_seed_is_the_same_on_every_machine() -> None:
    assert derive_seed(5, "weight", 0) == 3424151068893487722
