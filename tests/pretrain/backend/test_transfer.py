"""Micro-batches come to the device whole and in order, whatever the host does with its own meanwhile."""

import pytest
import torch
from torch import Tensor

from pretrain.backend.transfer import DeviceCopies, MicroBatch


def batches(count: int, size: int) -> list[MicroBatch]:
    return [
        ((torch.full((size,), n), torch.arange(size) + n), (torch.full((size,), n + 0.5),))
        for n in range(count)
    ]


def test_on_a_cpu_they_are_the_same_tensors_one_at_a_time() -> None:
    given = batches(3, 4)
    copies = DeviceCopies(torch.device("cpu"))(given)
    assert next(copies) is given[0]
    assert list(copies) == given[1:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
@pytest.mark.parametrize("count", [0, 1, 5])
def test_on_a_gpu_they_arrive_before_they_are_used(count: int) -> None:
    """The device is kept busy, so that copies run far ahead, and the memory of a micro-batch is needed for others while
    it is in use; what is there already stays where it is."""
    device, size = torch.device("cuda", torch.cuda.current_device()), 2**20
    busy, here = torch.randn(4096, 4096, device=device), torch.ones(3, device=device)
    sums: list[Tensor] = []
    for (first, second, same), (labels,) in DeviceCopies(device)(
        [((*inputs, here), labels) for inputs, labels in batches(count, size)]
    ):
        assert same is here
        busy = busy @ busy / 64
        sums.append(torch.stack([first.double().sum(), second.double().sum(), labels.double().sum()]))
        del first, second, labels
    assert len(sums) == count
    for n, found in enumerate(sums):
        assert found.tolist() == [n * size, size * (size - 1) / 2 + n * size, (n + 0.5) * size]
