"""Dropout masks are functions of place and time."""

import torch
from support.distributed import run_distributed
from support.training import make_mesh

from parallel.config import ParallelConfig
from parallel.rng import RandomStreams, dropout


def draws(tensor: int, steps: tuple[int, ...]) -> list[tuple[int, int]]:
    streams = RandomStreams(1, make_mesh(ParallelConfig(tensor=tensor)))
    found = []
    for step in steps:
        streams.begin_step(step)
        for layer in ("blocks.0", "blocks.1", "blocks.0"):
            draw = streams.draw(layer)
            found.append((draw.replicated("residual"), draw.sharded("attention")))
    return found


def test_tensor_ranks_share_what_is_replicated_and_only_that() -> None:
    first, second = run_distributed(draws, 2, 2, (1,))
    assert [a for a, _ in first] == [a for a, _ in second]
    assert not {b for _, b in first} & {b for _, b in second}


def test_data_ranks_share_nothing() -> None:
    first, second = run_distributed(draws, 2, 1, (1,))
    assert not {seed for pair in first for seed in pair} & {seed for pair in second for seed in pair}


def test_no_two_draws_are_alike_and_a_step_can_be_taken_again() -> None:
    (found,) = run_distributed(draws, 1, 1, (1, 2, 1))
    assert len({seed for pair in found[:6] for seed in pair}) == 12
    assert found[6:] == found[:3]


def test_dropout_keeps_the_mean_and_nothing_else() -> None:
    x = torch.ones(1000, 100, requires_grad=True)
    y = dropout(x, 0.25, seed=3)
    assert abs(y.mean().item() - 1) < 0.01
    assert sorted(set(y.detach().flatten().tolist())) == [0.0, (torch.tensor(1.0) / 0.75).item()]
    assert torch.equal(y, dropout(x, 0.25, seed=3))
    assert not torch.equal(y, dropout(x, 0.25, seed=4))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
