"""The formulas against plain ones in float64, and against what is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from parallel.statistics import (
    attention_entropy,
    entropy_lower_bound,
    row_std,
    sample_variance,
    sampled_rows,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_tev_of_initial_weights() -> None:
    tev = row_std(0.02 * draw(50257, 768))
    assert tev.mean().item() == pytest.approx(0.019982, abs=3e-6)
    assert tev.std().item() == pytest.approx(5.10e-4, rel=1e-2)


def test_tev_sees_a_direction_that_all_tokens_share() -> None:
    """The deviation over the vocabulary, dimension by dimension, stays at 0.02."""
    shared = 0.1 * draw(768, seed=1)
    shared *= 0.1 / shared.std()
    table = 0.02 * draw(20000, 768) + shared
    assert row_std(table).mean().item() == pytest.approx(math.hypot(0.1, 0.02), rel=2e-3)
    assert table.std(dim=0).mean().item() == pytest.approx(0.02, rel=1e-2)


@pytest.mark.parametrize("rows", [0, 1, 8192, 8200])
def test_tev_equals_the_formula(rows: int) -> None:
    table = draw(rows, 24) + 100.0
    wide = table.double()
    expected = ((wide - wide.mean(1, keepdim=True)) ** 2).mean(1).sqrt()
    torch.testing.assert_close(row_std(table).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("length", "count"), [(2, 32), (32, 32), (33, 32), (1000, 32), (7, "all")])
def test_sampled_rows_see_more_than_one_key(length: int, count: int) -> None:
    rows = sampled_rows(length, count).tolist()
    assert len(set(rows)) == len(rows) == (length - 1 if count == "all" else min(count, length - 1))
    assert min(rows) >= 1
    assert max(rows) < length


def plain_entropy(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Of the masked softmax, in float64; also the logits."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril()
    weights = logits.masked_fill(~mask, -math.inf).softmax(-1)
    return -torch.xlogy(weights, weights).sum(-1), logits


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_all_rows_equal_the_dense_formula(groups: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parallel.statistics._LOGITS_AT_ONCE", 2000)  # several pieces
    q, k = scale * draw(3, 4, 40, 16), scale * draw(3, groups, 40, 16, seed=1)
    rows = sampled_rows(40, "all")
    entropy, spread = attention_entropy(q, k, rows)
    expected, logits = plain_entropy(q, k)
    torch.testing.assert_close(entropy, expected[:, :, 1:], rtol=0, atol=1e-6 * scale**2 + 1e-9)
    for row in (1, 20, 39):
        visible = logits[:, :, row, : row + 1]
        centred = visible - visible.mean(-1, keepdim=True)
        torch.testing.assert_close(spread[:, :, row - 1], centred.norm(dim=-1), rtol=1e-5, atol=1e-6)


def test_sampled_rows_are_rows_of_all() -> None:
    q, k = draw(2, 4, 64, 8), draw(2, 2, 64, 8, seed=1)
    rows = sampled_rows(64, 5)
    sampled, _ = attention_entropy(q, k, rows)
    every, _ = attention_entropy(q, k, sampled_rows(64, "all"))
    torch.testing.assert_close(sampled, every[:, :, rows - 1])


@pytest.mark.parametrize(
    ("spread", "visible", "bound"),
    [
        (2, 128, 4.789953),
        (5, 128, 2.899461),
        (10, 128, 0.060876),
        (5, 1024, 6.431134),
        (10, 1024, 0.487158),
    ],
)
def test_values_of_the_bound(spread: float, visible: int, bound: float) -> None:
    value = entropy_lower_bound(torch.tensor(spread).double(), torch.tensor(visible).double())
    assert value.item() == pytest.approx(bound, abs=1e-6)


def test_the_bound_is_met_by_one_spike() -> None:
    """Logits (S, 0, ..., 0), centred and scaled back to length S: T = 8, S = 6."""
    length, size = 8, 6.0
    spike = torch.full((length,), -size / math.sqrt(length * (length - 1)), dtype=torch.float64)
    spike[0] = size * math.sqrt((length - 1) / length)
    # One key for each dimension: the last query's logits are its entries times sqrt(K) / sqrt(K).
    q = torch.zeros(1, 1, length, length)
    q[0, 0, -1] = (spike * length**0.5).float()
    entropy, spread = attention_entropy(q, torch.eye(length)[None, None], torch.tensor([length - 1]))
    bound = entropy_lower_bound(spread, torch.tensor(float(length)))
    assert spread.item() == pytest.approx(size, rel=1e-6)
    assert entropy.item() == pytest.approx(0.0841138516, abs=1e-7)
    assert (entropy - bound).item() == pytest.approx(0.0, abs=1e-7)


def test_the_bound_holds_for_random_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    for seed in range(40):
        q, k = draw(2, 4, 24, 8, seed=seed), draw(2, 4, 24, 8, seed=100 + seed)
        scale = 10 ** (2 * torch.rand((), generator=generator) - 1)
        rows = sampled_rows(24, "all")
        entropy, spread = attention_entropy(scale * q, scale * k, rows)
        slack = entropy - entropy_lower_bound(spread, rows.double() + 1)
        assert slack.min().item() > -1e-12


def test_variance_of_vectors() -> None:
    vectors = draw(5, 1000).double() + 3
    variance = sample_variance(vectors.square().sum(1).mean(), vectors.mean(0).square().sum(), 5)
    assert variance.item() == pytest.approx(vectors.var(dim=0).sum().item(), rel=1e-12)
