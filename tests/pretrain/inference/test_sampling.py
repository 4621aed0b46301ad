"""The tokens that may be drawn, and their probabilities, are those of an independent implementation."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pretrain.errors import CheckpointError
from pretrain.inference.sampling import Sampler, Sampling, likelier

SIZE = 50
LOGITS = 3 * torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
LOGITS[[7, 23, 24]] = LOGITS[3].clone()  # of equals the first counts
LOGITS[45:] = -math.inf  # padding

SETTINGS = list(product((0.3, 1.0, 2.5), (None, 1, 5, 44, 1000), (1.0, 0.999, 0.9, 0.5, 1e-9)))


def reference(
    logits: NDArray[np.float64], temperature: float, top_k: int | None, top_p: float
) -> NDArray[np.float64]:
    """Probabilities of all tokens, one after the other."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:top_k]
    weights = [math.exp((logits[token] - max(logits)) / temperature) for token in order]
    kept, total = [], 0.0
    for weight in weights:
        if kept and top_p < 1 and total >= top_p * sum(weights):
            break
        kept.append(weight)
        total += weight
    probabilities = np.zeros(len(logits))
    for token, weight in zip(order, kept, strict=False):
        probabilities[token] = weight / total
    return probabilities


def probabilities(sampling: Sampling) -> NDArray[np.float64]:
    kept_N, tokens_N = likelier(LOGITS, sampling)
    found = np.zeros(SIZE)
    found[tokens_N.numpy()] = (kept_N / kept_N.sum()).numpy()
    return found


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_probabilities_are_those_of_the_reference(
    temperature: float, top_k: int | None, top_p: float
) -> None:
    expected = reference(LOGITS.double().numpy(), temperature, top_k, top_p)
    found = probabilities(Sampling(temperature, top_k, top_p))
    assert (found > 0).tolist() == (expected > 0).tolist()
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS[::4])
def test_draws_divide_the_unit_interval_as_probabilities_do(
    temperature: float, top_k: int | None, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is drawn by the numbers of an interval as long as its probability, and by no others."""
    expected = reference(LOGITS.double().numpy(), temperature, top_k, top_p)
    order = sorted(range(SIZE), key=lambda token: (-expected[token], token))
    start = 0.0
    for token in order[: int((expected > 1e-9).sum())]:
        for share in (1e-6, 0.5, 1 - 1e-6):
            number = start + share * expected[token]
            monkeypatch.setattr(
                torch, "rand", lambda *_, number=number, **__: torch.tensor([number]).double()
            )
            assert Sampler(Sampling(temperature, top_k, top_p)).choose(LOGITS) == token
        start += expected[token]
    assert start == pytest.approx(1)


def test_without_temperature_the_likeliest_is_chosen() -> None:
    tied = LOGITS.clone()
    tied[[9, 30]] = 100.0
    assert Sampler(Sampling(temperature=0, top_k=5, top_p=0.1, seed=3)).choose(tied) == 9


def test_draws_follow_from_the_seed() -> None:
    def drawn(seed: int) -> list[int]:
        sampler = Sampler(Sampling(seed=seed))
        torch.manual_seed(seed % 2)  # the generator of everybody has no part in it
        return [sampler.choose(LOGITS) for _ in range(50)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(3)


def test_all_numbers_of_the_generator_draw_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest draws the last that has a probability, never padding."""
    for number in (0.0, math.nextafter(1, 0)):
        monkeypatch.setattr(torch, "rand", lambda *_, number=number, **__: torch.tensor([number]).double())
        assert LOGITS[Sampler(Sampling()).choose(LOGITS)].isfinite()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_number_is_refused(value: float, temperature: float) -> None:
    broken = LOGITS.clone()
    broken[2] = value
    with pytest.raises(CheckpointError, match="computes no numbers"):
        Sampler(Sampling(temperature)).choose(broken)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compute_dtypes_are_taken(dtype: torch.dtype) -> None:
    assert Sampler(Sampling(0)).choose(LOGITS.to(dtype)) == int(LOGITS.to(dtype).argmax())
