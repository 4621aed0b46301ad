"""`--launcher slurm|openmpi` makes a command line of srun or mpirun, or says what to type before anything starts."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.command import LaunchOptions, Machine
from launch.schedulers import launch_command
from pretrain.errors import ConfigurationError

CONFIG = Path("runs of mine/run.toml")
MACHINE = Machine(accelerators=0, visible_devices=None, free_port=23456)
ALLOCATION = replace(MACHINE, allocated_tasks=6)
HOSTS = {"worker-0": (0, 1), "worker-1": (0, 1)}
SLURM = LaunchOptions(CONFIG, ("run.steps=3", 'run.name="a b"'), launcher="slurm", extra=("--partition=gpu",))
MPI = replace(SLURM, launcher="openmpi", extra=("--allow-run-as-root",))
RANKS = ("-u", "-m", "pretrain", str(CONFIG), "--set", "run.steps=3", "--set", 'run.name="a b"')


def words(options: LaunchOptions, machine: Machine = MACHINE) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """It returns the words before and behind the interpreter."""
    argv = launch_command(options, machine, model_parallel=4).argv
    return argv[: argv.index(sys.executable)], argv[argv.index(sys.executable) + 1 :]


def test_ranks_get_their_arguments_as_they_are() -> None:
    """No shell stands in between: spaces need no quotes."""
    for options in (SLURM, MPI):
        given = replace(options, num_accelerators=2, arguments=("--resume=step00000003-a1",))
        assert words(given)[1] == (*RANKS, "--resume=step00000003-a1")
        assert words(given)[0][-1] == options.extra[0]


def test_srun_takes_the_number_that_was_asked_for_or_that_of_the_allocation() -> None:
    assert "--ntasks=2" in words(replace(SLURM, num_accelerators=2), ALLOCATION)[0]
    assert "--ntasks=6" in words(SLURM, ALLOCATION)[0]
    assert launch_command(SLURM, ALLOCATION, 1).world_size == 6
    with pytest.raises(ConfigurationError, match="--num-accelerators 4, or first salloc --ntasks=4"):
        words(SLURM)


def test_mpirun_takes_this_machine_as_the_other_launchers_do() -> None:
    assert words(MPI)[0][:3] == ("mpirun", "-n", "4")
    assert words(MPI, replace(MACHINE, accelerators=8))[0][:3] == ("mpirun", "-n", "8")
    assert words(MPI, ALLOCATION)[0][:3] == ("mpirun", "-n", "6")


def test_hosts() -> None:
    slurm, mpi = (replace(options, hostfile=Path("hosts"), slots=HOSTS) for options in (SLURM, MPI))
    assert {"--ntasks=4", "--nodes=2", "--nodelist=worker-0,worker-1", "--ntasks-per-node=2"} <= {
        *words(slurm)[0]
    }
    before = words(mpi)[0]
    assert before[before.index("--host") + 1] == "worker-0:2,worker-1:2"
    assert launch_command(mpi, MACHINE, 1).environment == {"MASTER_ADDR": "worker-0"}
    assert before[before.index("MASTER_ADDR") - 1] == "-x"


def test_where_ranks_meet_may_be_said() -> None:
    for options in (SLURM, MPI):
        given = replace(options, num_accelerators=2, master_addr="10.0.0.1", master_port=1234)
        command = launch_command(given, MACHINE, 1)
        assert command.environment == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
        assert command.master_port == 1234


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (replace(SLURM, slots={"a": (1, 3)}), r"a: srun and mpirun cannot .* slots 1, 3 alone; with a:0,1"),
        (replace(SLURM, slots={"a": (0,), "b": (0, 1)}), "not a slots=1, b slots=2"),
        (replace(SLURM, ssh_port=2222, num_accelerators=1), "--ssh-port: not with --launcher slurm"),
        (replace(MPI, ssh_port=2222), "plm_rsh_args '-p 2222'"),
        (replace(SLURM, launcher="mpich"), "--launcher mpich: .*take --launcher slurm"),
        (replace(SLURM, launcher="impi"), "--launcher impi"),
        (replace(SLURM, launcher="mvapich"), "--launcher mvapich"),
    ],
)
def test_what_cannot_be_started(options: LaunchOptions, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        words(options)


@pytest.mark.parametrize(("launcher", "program"), [("slurm", "srun"), ("openmpi", "mpirun")])
def test_a_missing_program_is_told(launcher: str, program: str) -> None:
    with pytest.raises(ConfigurationError, match=f"there is no {program} here"):
        words(replace(SLURM, launcher=launcher), replace(ALLOCATION, programs=frozenset({"pdsh"})))
