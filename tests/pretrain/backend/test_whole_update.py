"""Updates of all parameters at once give what DeepSpeed's own give, to the bit, and read nothing by parameter."""

from collections import Counter
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.steps import train
from support.training import Layout, make_config, make_engine, make_mesh, slow
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.backend import setup

LAYOUTS = [
    Layout(accumulation=2),
    Layout(dtype="bf16", accumulation=2),
    Layout(zero=1, dtype="bf16", accumulation=2),
    Layout(pipeline=2, zero=1, dtype="bf16", accumulation=3),
    slow(Layout(data=2, dtype="bf16", accumulation=2)),
    slow(Layout(tensor=2, data=2, zero=1, dtype="bf16", accumulation=2)),
]


def course(layout: Layout, ours: bool) -> tuple[list[tuple[float, float]], list[Tensor]]:
    """It takes three steps, with our update or with DeepSpeed's; returns losses, norms and the weights then."""
    config = make_config(layout)
    with pytest.MonkeyPatch.context() as patch:
        if not ours:
            patch.setattr(setup, "update_at_once", lambda engine, mesh: None)
        engine = make_engine(config, make_mesh(config.parallel))
    course = train(engine, config, 1, 3)
    return course, [held.weight.detach().clone() for held in engine.masters()]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_they_equal_those_of_deepspeed(layout: Layout) -> None:
    ours, theirs = (run_distributed(course, layout.world_size, layout, own) for own in (True, False))
    for (numbers, weights), (expected, others) in zip(ours, theirs, strict=True):
        assert numbers == expected
        assert len(weights) == len(others)
        assert all(map(torch.equal, weights, others))


class Counted(TorchDispatchMode):
    """It counts the operators of torch that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times[str(operator)] += 1
        return operator(*args, **(kwargs or {}))


def reads_and_copies(layout: Layout, blocks: int) -> tuple[int, int]:
    """It returns how often a step reads a number of a tensor, and how often it copies one."""
    config = make_config(layout, num_layers=blocks)
    engine = make_engine(config, make_mesh(config.parallel))
    train(engine, config, 1, 1)
    with Counted() as counted:
        train(engine, config, 2, 2)
    return counted.times["aten._local_scalar_dense.default"], counted.times["aten.copy_.default"]


@pytest.mark.parametrize("layout", LAYOUTS[:3], ids=str)
def test_depth_adds_no_reads_and_no_copies(layout: Layout) -> None:
    """Whether a step clips may add one or two of them."""
    shallow, deep = (run_distributed(reads_and_copies, 1, layout, blocks)[0] for blocks in (2, 6))
    assert max(more - few for more, few in zip(deep, shallow, strict=True)) <= 2
