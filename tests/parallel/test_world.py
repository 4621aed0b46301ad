"""What launchers leave in the environment is understood, and what cannot be is refused by its name."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.distributed import free_port

from parallel.world import (
    FIRST_PORT,
    PORTS,
    World,
    WorldError,
    describe_world,
    first_slurm_host,
    left_over,
    tasks_by_node,
)

ROOT = Path(__file__).parents[2]
TORCH = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5"}
TORCHRUN = {
    **TORCH,
    "LOCAL_WORLD_SIZE": "8",
    "GROUP_WORLD_SIZE": "1",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "1",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_GTIDS": "2,3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NODELIST": "gpu[01-08]",
}
"""Task 3 of a step of four on two nodes, in a job that has more."""
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "1197408257",
}
QUIET = {"OMP_NUM_THREADS": "1"}


def test_what_another_mpi_has_left_is_known() -> None:
    """DeepSpeed ends ranks whose LOCAL_RANK is not OMPI_COMM_WORLD_LOCAL_RANK, which `mpirun -n 1 surefoot` sets."""
    others = {
        "PMI_RANK": "0",
        "MPI_LOCALRANKID": "0",
        "MV2_COMM_WORLD_LOCAL_RANK": "0",
        "OMPI_MCA_btl": "tcp",
    }
    found = {*MPIRUN, *others} - {"OMPI_MCA_btl"}
    assert set(left_over({**TORCH, **MPIRUN, **others, "PATH": ""})) == found
    assert set(left_over({**STEP, "OMPI_COMM_WORLD_LOCAL_RANK": "0"})) == {"OMPI_COMM_WORLD_LOCAL_RANK"}
    assert left_over(MPIRUN) == []


def test_torch_variables_come_first() -> None:
    assert describe_world({**STEP, **TORCH}) == World(3, 8, 1, 1, "a", 5)
    assert describe_world(TORCH).variables == TORCH


def test_torchrun_names_its_attempts() -> None:
    world, first = describe_world({**TORCHRUN, **QUIET}), {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "0"}
    assert world.hosted
    assert world.local_size == 8
    assert world.launch != describe_world(first).launch


def test_torchrun_on_several_hosts_starts_but_does_not_restart() -> None:
    hosts = {**TORCHRUN, "GROUP_WORLD_SIZE": "2"}
    assert describe_world({**hosts, "TORCHELASTIC_RESTART_COUNT": "0"}).rank == 3
    with pytest.raises(WorldError, match="--supervise"):
        describe_world(hosts)


def test_slurm_step() -> None:
    assert describe_world({**STEP, **QUIET}) == World(
        rank=3,
        size=4,
        local_rank=1,
        local_size=2,
        address="gpu07",
        port=20000 + 123456 % 12000,
        launch="srun 123456.0",
    )


def test_a_smaller_step_than_its_job() -> None:
    """SLURM_NTASKS may be the job's: a step of one task is a world of one."""
    one = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_GTIDS": "0"}
    alone = {**STEP, **one, "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0"}
    assert describe_world(alone) == World()


def test_steps_and_jobs_have_ports_of_their_own() -> None:
    jobs = [{**STEP, "SLURM_JOB_ID": str(job)} for job in range(7, 107)]
    steps = [{**job, "SLURM_STEP_ID": str(step)} for job in jobs for step in range(8)]
    ports = [describe_world(step).port for step in steps]
    assert len(set(ports)) == len(steps)
    assert min(ports) >= FIRST_PORT
    assert max(ports) < FIRST_PORT + PORTS <= 32768
    two = [describe_world({**MPIRUN, "PMIX_NAMESPACE": name}).port for name in ("1197408257", "2885681153")]
    assert two[0] != two[1]
    assert describe_world({**STEP, "MASTER_PORT": "1234"}).port == 1234


BATCH = {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0"}
SHELL = {name: STEP[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_NODELIST")}
INTERACTIVE = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}


@pytest.mark.parametrize(
    "environment",
    [
        SHELL,
        {**SHELL, **BATCH},
        {**SHELL, **BATCH, **INTERACTIVE},
        {**STEP, **BATCH},
        {**SHELL, **BATCH, "SLURM_STEP_ID": "4294967291", "SLURM_STEP_NUM_TASKS": "2"},
    ],
    ids=["salloc", "sbatch", "interactive step", "sbatch from within a step", "batch step"],
)
def test_shells_and_scripts_of_a_job_are_no_tasks(environment: dict[str, str]) -> None:
    world = describe_world(environment)
    assert (world.rank, world.size, world.port) == (0, 1, 0)


def test_unused_tasks_are_told() -> None:
    assert "4 tasks; `srun python -m pretrain" in describe_world({**SHELL, **BATCH}).note
    assert describe_world({**SHELL, "SLURM_NTASKS": "1"}).note == ""


def test_mpirun() -> None:
    world = describe_world({**MPIRUN, **QUIET})
    assert (world.rank, world.size, world.local_rank, world.address) == (1, 2, 1, "127.0.0.1")
    hosts = {**MPIRUN, "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert describe_world({**hosts, "MASTER_ADDR": "a"}).address == "a"
    assert describe_world({**hosts, "SLURM_JOB_NODELIST": "n[1-2]"}).address == "n1"
    with pytest.raises(WorldError, match="mpirun -x MASTER_ADDR"):
        describe_world(hosts)


@pytest.mark.parametrize("environment", [{**STEP}, {**MPIRUN}, {**TORCH, "LOCAL_SIZE": "2"}])
def test_ranks_that_share_a_host_have_a_thread_each(environment: dict[str, str]) -> None:
    world = describe_world(environment)
    assert world.threads == 1
    assert "2 ranks of a host" in world.note
    for number in ("4", "4,2"):
        assert describe_world({**environment, "OMP_NUM_THREADS": number}).threads is None
    for number in ("0", "abc", "-1"):
        world = describe_world({**environment, "OMP_NUM_THREADS": number})
        assert world.threads == 1
        assert f"OMP_NUM_THREADS={number} is no number of threads" in world.note
    assert describe_world({}).threads is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({**TORCH, "LOCAL_RANK": ""}, "LOCAL_RANK is not set"),
        ({**TORCH, "RANK": "8"}, "RANK=8: must be below WORLD_SIZE=8"),
        ({**TORCH, "RANK": "-1"}, "RANK=-1: must be a whole number"),
        ({**TORCH, "MASTER_PORT": "tcp://10.0.0.1:80"}, "MASTER_PORT=tcp"),
        ({**TORCH, "MASTER_PORT": "99999"}, "MASTER_PORT=99999: must be from 1 to 65535"),
        ({**TORCH, "MASTER_PORT": "0"}, "MASTER_PORT=0"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "PMI_SIZE=2: .*not understood"),
        ({**MPIRUN, "OMPI_COMM_WORLD_RANK": "2"}, "OMPI_COMM_WORLD_RANK=2"),
    ],
)
def test_what_cannot_be(environment: dict[str, str], message: str) -> None:
    with pytest.raises(WorldError, match=message):
        describe_world(environment)


def test_alone() -> None:
    assert describe_world({}) == World()
    assert describe_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) == World()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("gpu[07-09,12],x", "gpu07"), ("gpu[3,5]", "gpu3"), ("x1,gpu[1-2]", "x1")],
)
def test_first_slurm_host(nodes: str, first: str) -> None:
    assert first_slurm_host(nodes) == first


def test_tasks_by_node() -> None:
    assert tasks_by_node("2(x3),1") == [2, 2, 2, 1]


def join(rank: int, port: int, **variables: str) -> "subprocess.Popen[str]":
    """A process joins a world of two at a port, as a rank of a step does."""
    given = {
        **{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_GTIDS": "0,1"},
        **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost"},
        **{"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "1", "MASTER_PORT": str(port), **variables},
    }
    code = "from parallel.mesh import *; print(ParallelMesh.create(ParallelConfig(timeout_seconds=60)).rank)"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **given, **QUIET},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ranks_meet_at_a_port_that_is_free() -> None:
    port = free_port()
    first, second = join(0, port), join(1, port)
    assert (second.communicate(timeout=120)[0], first.communicate(timeout=120)[0]) == ("1\n", "0\n")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        _, error = join(0, port).communicate(timeout=120)
    assert f"localhost:{port}: cannot be listened at: address already in use; choose another port" in error


def test_a_host_without_a_name_is_told() -> None:
    _, error = join(1, 29500, SLURM_STEP_NODELIST="no-such-host.invalid").communicate(timeout=120)
    assert "MASTER_ADDR=no-such-host.invalid: " in error
