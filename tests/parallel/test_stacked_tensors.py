"""Tensors of one shape are taken together: as a view where they lie so, else as a copy that goes back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parallel.stacks import by_kind, from_host, hand_out, lie_evenly, portions, product, stacked


def flat_buffer(gaps: list[int]) -> list[Tensor]:
    """Tensors (2, 3) in one storage, with so many elements between them."""
    buffer, start, found = torch.arange(200.0), 5, []
    for gap in gaps:
        found.append(buffer[start : start + 6].view(2, 3))
        start += 6 + gap
    return found


@pytest.mark.parametrize("gaps", [[0], [0, 0, 0], [4, 4, 4], [7, 7]])
def test_what_lies_evenly_is_a_view(gaps: list[int]) -> None:
    tensors = flat_buffer(gaps)
    stack = stacked(tensors)
    assert torch.equal(stack, torch.stack(tensors))
    stack.mul_(2)
    assert torch.equal(stack, torch.stack(tensors))
    hand_out(stack, tensors)
    assert torch.equal(stack, torch.stack(tensors))


@pytest.mark.parametrize(
    "tensors",
    [
        flat_buffer([4, 5, 4]),
        flat_buffer([4, 4, 4])[::-1],
        [torch.ones(2, 3), torch.zeros(2, 3)],
        [torch.ones(3, 2).T, torch.zeros(3, 2).T],
        [torch.arange(12.0).view(2, 6)[:, :3], torch.arange(12.0).view(2, 6)[:, 3:]],
    ],
)
def test_what_does_not_is_copied_and_handed_out(tensors: list[Tensor]) -> None:
    assert not lie_evenly(tensors)
    before = [tensor.clone() for tensor in tensors]
    stack = stacked(tensors)
    stack.add_(1)
    assert all(map(torch.equal, tensors, before))
    hand_out(stack, tensors)
    assert all(torch.equal(tensor, old + 1) for tensor, old in zip(tensors, before, strict=True))


@given(sizes=st.lists(st.sampled_from([1, 10, 2**17, 2**17 + 1, 2**19]), max_size=12))
def test_items_of_a_kind_stay_in_order(sizes: list[int]) -> None:
    found = by_kind(enumerate(sizes), lambda item: item[1])
    assert [alike[0][1] for alike in found] == list(dict.fromkeys(sizes))
    assert all(alike == [(n, size) for n, size in enumerate(sizes) if size == alike[0][1]] for alike in found)


@given(size=st.sampled_from([1, 10, 2**17, 2**17 + 1, 2**19]), count=st.integers(1, 12))
def test_portions_are_bounded_and_miss_nothing(size: int, count: int) -> None:
    tensors = list(torch.zeros(1).expand(count, size))
    found = [range(count)[some] for some in portions(tensors)]
    assert [number for some in found for number in some] == list(range(count))
    assert all(len(some) == 1 or len(some) * size <= 2**18 for some in found)


@pytest.mark.parametrize("count", [1, 3])
def test_a_product_alone_is_that_of_a_batch(count: int) -> None:
    left, right = torch.randn(count, 4, 5).double(), torch.randn(count, 5, 6).double()
    assert torch.allclose(product(left, right), left @ right, atol=1e-14)


def test_numbers_of_the_host() -> None:
    assert from_host([3, 1], torch.device("cpu"), torch.int64).tolist() == [3, 1]
    assert from_host([], torch.device("cpu"), torch.float64).dtype == torch.float64
