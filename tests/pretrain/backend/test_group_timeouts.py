"""No group may wait longer than `parallel.timeout_seconds`, also none of those that DeepSpeed makes for itself."""

import pytest
import torch
from support.distributed import run_distributed
from support.training import Layout, make_config, make_engine, make_mesh
from torch.distributed import distributed_c10d


def longest_timeout(layout: Layout) -> float:
    """Of all groups of this rank, in seconds; the world of the rig has one of its own."""
    config = make_config(layout)
    engine = make_engine(config, make_mesh(config.parallel))
    world = torch.distributed.group.WORLD
    groups = [group for group in distributed_c10d._world.pg_map if group is not world]
    backends = [group._get_backend(torch.device("cpu")) for group in groups]
    assert engine.module is not None
    return max(backend.options._timeout.total_seconds() for backend in backends)


@pytest.mark.parametrize("layout", [Layout(pipeline=2), Layout(data=2, zero=1)], ids=str)
def test_all_groups_have_our_timeout(layout: Layout) -> None:
    seconds = make_config(layout).parallel.timeout_seconds
    assert run_distributed(longest_timeout, layout.world_size, layout) == [seconds] * layout.world_size
