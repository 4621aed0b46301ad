"""The mesh agrees with DeepSpeed's grid; its ranks agree with one another."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from support.distributed import run_distributed
from support.training import make_mesh

from parallel.config import ParallelConfig
from parallel.interfaces import INTERFACE
from parallel.mesh import is_peer_loss, output_is_collected, take_place
from parallel.world import World


def coordinates(tensor: int, pipeline: int) -> tuple[dict[str, int], dict[str, float]]:
    mesh = make_mesh(ParallelConfig(tensor=tensor, pipeline=pipeline))
    axes = {"pipe": mesh.pipeline, "data": mesh.data, "model": mesh.tensor}
    sums = {}
    for name, axis in {**axes, "replica": mesh.model}.items():
        value = torch.tensor(float(2**mesh.rank))
        torch.distributed.all_reduce(value, group=axis.group)
        assert value.item() == sum(2**rank for rank in axis.ranks)
        sums[name] = value.item()
    return {name: axis.rank for name, axis in axes.items()}, sums


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4)])
def test_ranks_lie_as_in_deepspeed(tensor: int, pipeline: int) -> None:
    topology = PipeModelDataParallelTopology(num_pp=pipeline, num_mp=tensor, num_dp=4 // (tensor * pipeline))
    for rank, (own, sums) in enumerate(run_distributed(coordinates, 4, tensor, pipeline)):
        assert own == topology.get_coord(rank)._asdict()
        for axis in ("pipe", "data", "model"):
            ranks = next(row for row in topology.get_axis_comm_lists(axis) or [[rank]] if rank in row)
            assert sums[axis] == sum(2**r for r in ranks)
        replica = topology.filter_match(data=own["data"])
        assert sums["replica"] == sum(2**r for r in replica)


def agreement() -> tuple[bool, bool, list[object]]:
    mesh = make_mesh(ParallelConfig())
    return mesh.agree_any(mesh.rank == 1), mesh.agree_any(False), mesh.gather({"rank": mesh.rank})


def test_agreement() -> None:
    assert run_distributed(agreement, 2) == [(True, False, [{"rank": 0}, {"rank": 1}])] * 2


def refused() -> str:
    with pytest.raises(ValueError, match="3") as error:
        make_mesh(ParallelConfig(tensor=3))
    return str(error.value)


def test_world_that_does_not_divide() -> None:
    assert run_distributed(refused, 2) == ["2 ranks cannot be split into tensor 3 x pipeline 1"] * 2


def test_peer_loss_is_told_from_other_errors() -> None:
    assert is_peer_loss(
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed")
    )
    assert not is_peer_loss(RuntimeError("shape mismatch"))
    assert not is_peer_loss(ValueError("/gloo/"))


@pytest.mark.parametrize(
    ("environment", "collected"),
    [
        ({}, False),
        ({"RANK": "0", "SLURM_PROCID": "0", "CI": "false"}, False),
        ({"CI": "true"}, True),
        ({"OMPI_COMM_WORLD_RANK": "0"}, True),
        ({"PMI_RANK": "1"}, True),
    ],
)
def test_output_of_ranks_may_end_in_a_log(environment: dict[str, str], collected: bool) -> None:
    assert output_is_collected(environment) is collected


ALONE = """
import os, psutil, torch
from parallel.mesh import ParallelMesh
meshes = [ParallelMesh.alone(), ParallelMesh.alone()]
assert meshes[0] == meshes[1]
listening = {c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN}
print(meshes[0].gather("x"), meshes[0].data.from_last("x"), meshes[0].model.size)
print(listening <= {"127.0.0.1"}, os.environ[{name!r}])
torch.distributed.destroy_process_group()
ParallelMesh.alone()
"""


def test_a_rank_has_one_place() -> None:
    """DeepSpeed ends ranks that Open MPI's variables place elsewhere, such as those of `mpirun -n 1 surefoot train`."""
    environment = {"OMPI_COMM_WORLD_LOCAL_RANK": "0", "RANK": "1", "LOCAL_RANK": "1", "HOME": "/"}
    world = World(1, 2, 1, 2, "a", 5)
    take_place(world, environment)
    assert environment == {**world.variables, "HOME": "/"}


def test_a_process_alone_needs_no_launcher_and_no_network() -> None:
    """Whatever is left in its environment of a job on a cluster."""
    left = {INTERFACE: "absent0", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "absent", "MASTER_PORT": "1"}
    program = ALONE.replace("{name!r}", repr(INTERFACE))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **left},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['x'] x 1\nTrue absent0\n"
