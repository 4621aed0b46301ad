"""Fixtures for tests of models in one process."""

from collections.abc import Iterator

import pytest
import torch

from parallel.mesh import ParallelMesh


@pytest.fixture(scope="module")
def alone() -> Iterator[ParallelMesh]:
    """The mesh of this process alone; small products are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield ParallelMesh.alone()
    torch.distributed.destroy_process_group()
    torch.set_num_threads(threads)
