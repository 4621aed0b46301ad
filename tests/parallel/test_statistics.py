"""The formulas against plain ones in float64, and against what is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from parallel.statistics import (
    Visibility,
    attention_entropy,
    entropy_lower_bound,
    row_std,
    sample_variance,
    sampled_rows,
    squared_norms,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_norms_of_large_tensors_keep_their_digits() -> None:
    """torch's norm in fp32 of the largest of these is 1e-4 off on a CPU."""
    sizes = (2**23 + 3, 5, 2**16, 2**16 + 1, 0)
    tensors = [draw(size, seed=size) for size in sizes]
    exact = [tensor.double().square().sum().item() for tensor in tensors]
    assert squared_norms(tensors).tolist() == pytest.approx(exact, rel=2e-6)
    assert squared_norms([draw(64, 4096).T, draw(3)])[0].item() == pytest.approx(64 * 4096, rel=0.02)
    assert squared_norms(tensors).dtype == torch.float64


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
    monkeypatch.setattr("parallel.statistics._LOGITS_AT_ONCE", {"cpu": 2000})  # several pieces
    q, k = scale * draw(3, 4, 40, 16), scale * draw(3, groups, 40, 16, seed=1)
    rows = sampled_rows(40, "all")
    found = attention_entropy(q, k, rows, Visibility())
    entropy, spread = found.entropy_BHR, found.spread_BHR
    assert found.visible_PR.tolist() == [[row + 1 for row in rows]]
    expected, logits = plain_entropy(q, k)
    torch.testing.assert_close(entropy, expected[:, :, 1:], rtol=0, atol=1e-6 * scale**2 + 1e-9)
    for row in (1, 20, 39):
        visible = logits[:, :, row, : row + 1]
        centred = visible - visible.mean(-1, keepdim=True)
        torch.testing.assert_close(spread[:, :, row - 1], centred.norm(dim=-1), rtol=1e-5, atol=1e-6)


def lengths(batch: int, size: int, *, seed: int) -> Tensor:
    """Which positions are real: samples of several lengths, one of them whole and one of a single token."""
    ends = torch.randint(2, size, (batch,), generator=torch.Generator().manual_seed(seed))
    ends[0], ends[-1] = size, 1
    return torch.arange(size) < ends[:, None]


RECTANGLE = (5, 4, 2, 11, 23)
"""Samples, heads, key heads, queries, keys."""


@pytest.mark.parametrize("scale", [0.1, 3.0])
@pytest.mark.parametrize("masked", [(), ("keys",), ("queries",), ("keys", "queries")], ids="-".join)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_entropy_of_what_a_row_sees_equals_the_dense_formula(
    causal: bool, masked: tuple[str, ...], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parallel.statistics._LOGITS_AT_ONCE", {"cpu": 1500})  # several pieces
    samples, heads, groups, queries, keys = RECTANGLE
    keys = queries if causal else keys
    q, k = scale * draw(samples, heads, queries, 8), scale * draw(samples, groups, keys, 8, seed=1)
    keys_BS = lengths(samples, keys, seed=2) if "keys" in masked else None
    queries_BT = lengths(samples, queries, seed=3) if "queries" in masked else None
    rows = sampled_rows(queries, "all", first=0)
    found = attention_entropy(q, k, rows, Visibility(causal, keys_BS, queries_BT))
    for sample in range(samples):
        for row in range(queries):
            seen = torch.ones(keys, dtype=torch.bool)
            seen &= torch.arange(keys) <= row if causal else True
            seen &= keys_BS[sample] if keys_BS is not None else True
            seen &= queries_BT[sample, row] if queries_BT is not None else True
            known = found.visible_PR.expand(samples, -1)[sample, row].item()
            assert known == seen.sum()
            if known < 2:
                continue
            for head in range(heads):
                key = k[sample, head // (heads // groups), seen].double()
                logits = key @ q[sample, head, row].double() / 8**0.5
                weights = logits.softmax(0)
                entropy = -torch.xlogy(weights, weights).sum()
                spread = (logits - logits.mean()).norm()
                assert found.entropy_BHR[sample, head, row] == pytest.approx(entropy.item(), abs=1e-5)
                assert found.spread_BHR[sample, head, row] == pytest.approx(spread.item(), rel=1e-5, abs=1e-5)


def test_logits_of_all_rows_are_never_there_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows there are, of any shape, masked or not."""
    largest = []

    def measured(logits: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        largest.append(logits.numel())
        return logits.sum(-1), logits.sum(-1)

    monkeypatch.setattr("parallel.statistics._LOGITS_AT_ONCE", {"cpu": 4000})
    monkeypatch.setattr("parallel.statistics._entropy_of_logits", measured)
    q, k = draw(3, 4, 50, 8), draw(3, 2, 70, 8)
    masks = Visibility(False, torch.ones(3, 70, dtype=torch.bool), torch.ones(3, 50, dtype=torch.bool))
    found = attention_entropy(q, k, sampled_rows(50, "all", first=0), masks)
    assert found.entropy_BHR.shape == (3, 4, 50)
    assert max(largest) <= 4000
    assert len(largest) == 50 // (4000 // (3 * 4 * 70)) + 1


@pytest.mark.parametrize(("length", "count"), [(1, 32), (5, 32), (40, 32), (7, "all")])
def test_rows_of_a_rectangle_begin_with_the_first(length: int, count: int) -> None:
    rows = sampled_rows(length, count, first=0).tolist()
    assert len(set(rows)) == len(rows) == (length if count == "all" else min(count, length))
    assert 0 <= min(rows) <= max(rows) < length


def test_sampled_rows_are_rows_of_all() -> None:
    q, k = draw(2, 4, 64, 8), draw(2, 2, 64, 8, seed=1)
    rows = sampled_rows(64, 5)
    sampled = attention_entropy(q, k, rows, Visibility()).entropy_BHR
    every = attention_entropy(q, k, sampled_rows(64, "all"), Visibility()).entropy_BHR
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
    rows = torch.tensor([length - 1])
    found = attention_entropy(q, torch.eye(length)[None, None], rows, Visibility())
    entropy, spread = found.entropy_BHR, found.spread_BHR
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
        found = attention_entropy(scale * q, scale * k, rows, Visibility())
        slack = found.entropy_BHR - entropy_lower_bound(found.spread_BHR, rows.double() + 1)
        assert slack.min().item() > -1e-12


def test_the_bound_holds_for_random_rows_that_see_some_keys() -> None:
    for seed in range(10):
        q, k = 4 * draw(5, 4, 11, 8, seed=seed), 4 * draw(5, 4, 23, 8, seed=100 + seed)
        masks = Visibility(False, lengths(5, 23, seed=seed))
        found = attention_entropy(q, k, sampled_rows(11, "all", first=0), masks)
        visible = found.visible_PR[:, None].double()
        slack = (found.entropy_BHR - entropy_lower_bound(found.spread_BHR, visible)).where(visible > 1, 1.0)
        assert slack.min().item() > -1e-12


def test_variance_of_vectors() -> None:
    vectors = draw(5, 1000).double() + 3
    variance = sample_variance(vectors.square().sum(1).mean(), vectors.mean(0).square().sum(), 5)
    assert variance.item() == pytest.approx(vectors.var(dim=0).sum().item(), rel=1e-12)
