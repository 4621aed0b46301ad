"""The attention core equals the formula with every mask, and calls the plain kernel where there is none.

B  samples, H  query heads, G  key heads, T  queries, S  keys, K  head size
"""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pretrain.models.attention import AttentionCore


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def real(samples: int, length: int) -> Tensor:
    """One sample whole, one without a token, the others between."""
    ends = torch.linspace(0, length, samples).round()
    return torch.arange(length) < ends[:, None]


def plain(q: Tensor, k: Tensor, v: Tensor, seen_BTS: Tensor) -> Tensor:
    """In float64; zero for a query that sees nothing."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen_BTS[:, None], -torch.inf)
    weights = logits.softmax(-1).nan_to_num(0.0)
    return weights @ v


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("masked", [True, False], ids=["padding", "whole"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "all"])
def test_output_and_gradients_equal_the_formula(causal: bool, masked: bool, groups: int) -> None:
    samples, queries, keys = 4, 9, 9 if causal else 13
    leaves = [draw(samples, n, length, 8, seed=i) for i, (n, length) in enumerate(
        [(4, queries), (groups, keys), (groups, keys)]
    )]  # fmt: skip
    ours = [x.clone().requires_grad_() for x in leaves]
    theirs = [x.double().requires_grad_() for x in leaves]
    keys_BS = real(samples, keys) if masked else None
    seen = torch.ones(samples, queries, keys, dtype=torch.bool)
    seen &= torch.ones(queries, keys, dtype=torch.bool).tril() if causal else True
    seen &= real(samples, keys)[:, None, :] if masked else True
    counts = seen.any(-1)[:, None, :, None]
    gradient = draw(samples, 4, queries, 8, seed=9) * counts
    y, expected = AttentionCore(causal=causal)(*ours, 0.0, keys_BS), plain(*theirs, seen)
    assert y.isfinite().all()
    torch.testing.assert_close((y * counts).double(), expected, rtol=1e-5, atol=1e-5)
    y.backward(gradient)
    expected.backward(gradient.double())
    for x, reference in zip(ours, theirs, strict=True):
        assert x.grad is not None
        assert reference.grad is not None
        torch.testing.assert_close(x.grad.double(), reference.grad.nan_to_num(0.0), rtol=1e-5, atol=1e-5)


def test_gradients_of_what_sees_nothing_are_finite() -> None:
    """Also where someone asks for them."""
    leaves = [draw(2, 4, 5, 8, seed=i).requires_grad_() for i in range(3)]
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    for causal in (True, False):
        AttentionCore(causal=causal)(*leaves, 0.0, nothing).sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)


def test_without_a_mask_the_kernel_is_called_as_it_always_was() -> None:
    """A mask would take the flash kernels away."""
    q, k, v = (draw(2, 4, 5, 8, seed=i) for i in range(3))
    calls: list[dict[str, Any]] = []

    def kernel(*arguments: Tensor, **options: Any) -> Tensor:
        calls.append(options)
        return F.scaled_dot_product_attention(*arguments, **options)

    with patch("pretrain.models.attention.F", wraps=F) as functional:
        functional.scaled_dot_product_attention = kernel
        y = AttentionCore(causal=True)(q, k, v, 0.0)
        AttentionCore(causal=False)(q, k, v, 0.0, None, real(2, 5))
    plain_options = {"attn_mask": None, "dropout_p": 0.0, "enable_gqa": False}
    assert calls == [{**plain_options, "is_causal": True}, {**plain_options, "is_causal": False}]
    assert torch.equal(y, F.scaled_dot_product_attention(q, k, v, is_causal=True))
