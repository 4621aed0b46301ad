"""What a launcher says about the world of ranks, read from the variables that it leaves in the environment.

It is pure: an environment in, a `World` out. `deepspeed` and `torchrun` describe the world in torch's own variables,
`srun` in those of its step, Open MPI's `mpirun` in OMPI_COMM_WORLD_*.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

Environment = Mapping[str, str]

THREADS = "OMP_NUM_THREADS"
SOME_THREADS = re.compile(r"\s*0*[1-9]\d*\s*(,\s*\d+\s*)*")
"""A number, or one for each level of threads within threads."""
OF_MPI = re.compile(r"(OMPI_COMM_WORLD|OMPI_UNIVERSE|PMIX?|MV2_COMM_WORLD)_|MPI_LOCALN?RANK(ID|S)$")
LAST_PORT = 65535
FIRST_PORT, PORTS = 20000, 12000
"""Derived ports lie below those that Linux hands out by itself, which begin at 32768."""
STEPS_APART = 1009
"""Steps of a job, and jobs of one step each that were submitted soon after one another, get different ports."""


class WorldError(Exception):
    """These ranks cannot be a world: what the launcher says about it cannot be, they were started differently, or
    somebody else is at their address."""

    def __init__(self, message: str, differences: tuple[str, ...] = ()) -> None:
        self.differences = differences
        super().__init__(message)


@dataclass(frozen=True)
class World:
    """It is the place of this process in the world of ranks, before they have met."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """So many ranks are on this host; 1 where the launcher does not say."""
    address: str = "127.0.0.1"
    port: int = 0
    """Rank 0 listens there; 0 lets a world of one listen wherever there is room."""
    launch: str = ""
    """It tells this launch from others that may listen at the same port; empty where it has no name."""
    hosted: bool = False
    """The launcher itself listens at the port, and outlives the ranks: `torchrun`."""
    threads: int | None = None
    """A rank computes on the CPU with so many threads; None leaves that to libraries."""
    note: str = ""
    """What the user should know about how the environment was understood."""

    def __post_init__(self) -> None:
        if not (0 < self.port <= LAST_PORT or (self.port == 0 and self.size == 1)):
            raise WorldError(f"MASTER_PORT={self.port}: must be from 1 to {LAST_PORT}, for example 29500")

    @property
    def scheduled(self) -> bool:
        """It is true where `srun` or `mpirun` has started the ranks."""
        return bool(self.launch) and not self.hosted

    @property
    def variables(self) -> dict[str, str]:
        """It returns torch's variables for this world."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def describe_world(environment: Environment) -> World:
    """It returns the world that the launcher describes, and a world of one where there is no launcher.

    Libraries give each process a thread for every core; so ranks that share a host have one each, as under
    `torchrun`, unless the user says otherwise.

    Raises:
        WorldError: the description is not complete, contradicts itself, or is in no language that we know.
    """
    world = named_world(environment)
    given = environment.get(THREADS, "")
    if world.local_size == 1 or SOME_THREADS.fullmatch(given):
        return world
    why = f"{THREADS}={given} is no number of threads" if given else f"{THREADS} is not set"
    note = f"{why}: each of the {world.local_size} ranks of a host computes with 1 thread"
    return replace(world, threads=1, note=note)


def named_world(environment: Environment) -> World:
    """It returns the world in the words of the launcher that describes it."""
    if "RANK" in environment:
        return torch_world(environment)
    if "OMPI_COMM_WORLD_RANK" in environment:
        return open_mpi_world(environment)
    if in_slurm_step(environment):
        return slurm_world(environment)
    if number(environment, "PMI_SIZE", "1") > 1:
        raise WorldError(
            f"PMI_SIZE={environment['PMI_SIZE']}: started by an MPI whose ranks are not understood here; "
            "start with Open MPI's `mpirun`, `srun`, `torchrun` or `surefoot train`"
        )
    return World(port=number(environment, "MASTER_PORT", "0"), note=unused_tasks(environment))


def left_over(environment: Environment) -> list[str]:
    """It returns the variables by which an MPI tells its ranks their places, where it has not started this one.

    `mpirun -n 1 surefoot train` leaves them to the ranks, and libraries take them for more than torch's own.
    """
    by_open_mpi = "RANK" not in environment and "OMPI_COMM_WORLD_RANK" in environment
    return [] if by_open_mpi else [name for name in environment if OF_MPI.match(name)]


def torch_world(environment: Environment) -> World:
    """It reads torch's own variables. `torchrun` keeps its store over restarts, so that attempts need names.

    Raises:
        WorldError: `torchrun` has started ranks again on one of several hosts. Its hosts count restarts apart from one
            another, so no name for an attempt is known to all.
    """
    attempt = number(environment, "TORCHELASTIC_RESTART_COUNT", "0")
    if attempt and number(environment, "GROUP_WORLD_SIZE", "1") > 1:
        raise WorldError(
            "torchrun --max-restarts: ranks on several hosts cannot find one another again; "
            "start with --max-restarts 0, or with `surefoot train --supervise`, which starts all of them anew"
        )
    elastic = "TORCHELASTIC_RUN_ID" in environment
    return World(
        *place(environment, "RANK", "WORLD_SIZE", "LOCAL_RANK"),
        local_size=number(environment, "LOCAL_WORLD_SIZE", environment.get("LOCAL_SIZE", "1")),
        address=given(environment, "MASTER_ADDR"),
        port=number(environment, "MASTER_PORT"),
        launch=f"torchrun {environment['TORCHELASTIC_RUN_ID']}, attempt {attempt}" if elastic else "",
        hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def open_mpi_world(environment: Environment) -> World:
    """It reads Open MPI's variables, which name no address: one host, or a Slurm allocation, needs none.

    Raises:
        WorldError: there are several hosts, and nothing says on which of them rank 0 is.
    """
    rank, size, local_rank = place(
        environment, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"
    )
    local_size = number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE")
    hosts = environment.get("SLURM_JOB_NODELIST", "")
    address = environment.get("MASTER_ADDR") or (
        "127.0.0.1" if local_size == size else first_slurm_host(hosts)
    )
    if not address:
        raise WorldError(
            "MASTER_ADDR is not set: mpirun does not tell which host rank 0 is on; "
            "for example mpirun -x MASTER_ADDR=HOST, with the first host of the list"
        )
    name = environment.get("PMIX_NAMESPACE", "")
    port = FIRST_PORT + zlib.crc32(name.encode()) % PORTS if name else 29500
    return World(
        rank,
        size,
        local_rank,
        local_size,
        address,
        number(environment, "MASTER_PORT", str(port)),
        launch=f"mpirun {name}" if name else "",
    )


def in_slurm_step(environment: Environment) -> bool:
    """It tells whether `srun` has started this process as one of several tasks.

    A batch script or the shell of an allocation has the job's variables, too. A script that was submitted from within
    a step has even those of that step; but the tasks of its own, SLURM_GTIDS, are not as many as the step's.
    """
    if "SLURM_STEP_ID" not in environment or "SLURM_PROCID" not in environment:
        return False
    here = tasks_by_node(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = number(environment, "SLURM_NODEID", "0")
    expected = here[node] if node < len(here) else 0
    started = len(environment.get("SLURM_GTIDS", "").split(","))
    return number(environment, "SLURM_STEP_NUM_TASKS", "1") > 1 and expected == started


def slurm_world(environment: Environment) -> World:
    """It reads the variables of a step; those of the job may count tasks that are not of this step."""
    job, step = number(environment, "SLURM_JOB_ID"), number(environment, "SLURM_STEP_ID")
    port = FIRST_PORT + (job + STEPS_APART * step) % PORTS
    return World(
        *place(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
        local_size=len(environment["SLURM_GTIDS"].split(",")),
        address=environment.get("MASTER_ADDR") or first_slurm_host(given(environment, "SLURM_STEP_NODELIST")),
        port=number(environment, "MASTER_PORT", str(port)),
        launch=f"srun {job}.{step}",
    )


def unused_tasks(environment: Environment) -> str:
    """It says what is left unused of an allocation of several tasks, in whose shell or script this process runs."""
    tasks = number(environment, "SLURM_NTASKS", "1")
    if tasks < 2 or "SLURM_JOB_ID" not in environment or environment.get("SLURM_STEP_NUM_TASKS") == "1":
        return ""
    return (
        f"this process is no task of `srun`: it trains as the only rank, though the job has {tasks} tasks; "
        "`srun python -m pretrain ...` starts a rank in each"
    )


def place(environment: Environment, rank: str, size: str, local_rank: str) -> tuple[int, int, int]:
    """It returns rank, world size and local rank under these names, and raises WorldError where they contradict."""
    found = number(environment, rank), number(environment, size), number(environment, local_rank)
    if not found[0] < found[1]:
        raise WorldError(f"{rank}={found[0]}: must be below {size}={found[1]}")
    return found


def number(environment: Environment, name: str, default: str = "") -> int:
    """It returns a variable that must be a whole number, and raises WorldError where it is none."""
    text = environment.get(name) or default or given(environment, name)
    if not text.isdecimal():
        raise WorldError(f"{name}={text}: must be a whole number")
    return int(text)


def given(environment: Environment, name: str) -> str:
    """It returns a variable, and raises WorldError where it is missing."""
    if not environment.get(name):
        raise WorldError(
            f"{name} is not set, though other variables of a launcher are: set it, or unset those to train alone"
        )
    return environment[name]


def tasks_by_node(text: str) -> list[int]:
    """It returns the tasks of each node: `2(x3),1` -> 2, 2, 2, 1."""
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(tasks) for tasks, times in groups for _ in range(int(times or 1))]


def first_slurm_host(node_list: str) -> str:
    """It returns the first host of a SLURM node list: `gpu[07-09,12],login1` -> `gpu07`."""
    prefix, bracket, rest = node_list.partition("[")
    if not bracket or "," in prefix:
        return node_list.split(",")[0]
    return prefix + rest.split("]")[0].split(",")[0].split("-")[0]
