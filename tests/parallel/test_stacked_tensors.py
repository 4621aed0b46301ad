"""Tensors of one shape are taken together: as a view where they lie so, else as a copy that goes back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parallel.stacks import from_host, hand_out, lie_evenly, runs, stacked


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
def test_runs_are_of_one_kind_in_order_and_bounded(sizes: list[int]) -> None:
    items = [(number, size, torch.empty(size, device="meta")) for number, size in enumerate(sizes)]
    found = list(runs(items, lambda item: item[1], lambda item: torch.empty(item[1])))
    assert sorted(number for run in found for number, _, _ in run) == list(range(len(sizes)))
    for run in found:
        assert len({size for _, size, _ in run}) == 1
        assert [number for number, _, _ in run] == sorted(number for number, _, _ in run)
        assert len(run) == 1 or sum(size for _, size, _ in run) <= 2**18


def test_numbers_of_the_host() -> None:
    assert from_host([3, 1], torch.device("cpu"), torch.int64).tolist() == [3, 1]
    assert from_host([], torch.device("cpu"), torch.float64).dtype == torch.float64
