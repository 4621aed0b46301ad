"""All ranks agree level by level on what one group of all of them would agree on."""

import math
from datetime import timedelta

import pytest
import torch
from support.distributed import run_distributed
from support.training import make_mesh, slow

from parallel.config import ParallelConfig
from parallel.level_sizes import hops, level_sizes
from parallel.levels import Levels


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        (1, []),
        (2, [2]),
        (4, [4]),
        (6, [3, 2]),
        (8, [4, 2]),
        (24, [4, 3, 2]),
        (31, [31]),
        (62, [2, 31]),
        (4096, [4] * 6),
    ],
)
def test_sizes_of_levels(count: int, sizes: list[int]) -> None:
    assert level_sizes(count) == sizes
    assert math.prod(sizes) == count


def test_hops_hardly_grow_with_the_ranks() -> None:
    assert [hops(count) for count in (1, 2, 8, 2048, 4096)] == [0, 2, 8, 32, 36]


def agreed(world_size: int, most: int) -> tuple[list[int], list[int], torch.Tensor]:
    mesh = make_mesh(ParallelConfig())
    levels = Levels.over_world(mesh.rank, world_size, timedelta(seconds=60), most)
    sizes = [group.size() for group in levels.groups]
    generator = torch.Generator().manual_seed(mesh.rank)
    own = (
        10.0 ** torch.randint(-9, 9, (50,), generator=generator)
        * torch.randn(50, generator=generator).double()
    )
    return sizes, levels.gather(mesh.rank), levels.sum(own)


@pytest.mark.parametrize(
    ("world_size", "most", "sizes"),
    [(4, 2, [2, 2]), slow(8, 2, [2, 2, 2]), slow(6, 3, [3, 2]), slow(6, 2, [2, 3])],
)
def test_every_rank_has_the_same_bytes(world_size: int, most: int, sizes: list[int]) -> None:
    answers = run_distributed(agreed, world_size, world_size, most)
    assert [answer[:2] for answer in answers] == [(sizes, list(range(world_size)))] * world_size
    ours = answers[0][2]
    assert all(torch.equal(answer[2], ours) for answer in answers)
    ((_, _, plain), *_) = run_distributed(agreed, world_size, world_size, 16)
    torch.testing.assert_close(ours, plain, rtol=1e-13, atol=1e-6)
