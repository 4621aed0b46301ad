"""The mesh of ranks is one object, made once and handed down.

Ranks are laid out as DeepSpeed's `PipeModelDataParallelTopology` does, tensor innermost:
rank = (pipeline * data_size + data) * tensor_size + tensor, so that tensor-parallel ranks share a host.
"""

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from parallel.config import ParallelConfig
from parallel.interfaces import INTERFACE, choose_interface
from parallel.levels import Levels, make_group
from parallel.rendezvous import FAILURE, Facts, Place, meet
from parallel.world import THREADS, World, WorldError, describe_world, left_over

SHARING = timedelta(seconds=30)
"""A rank that cannot start waits so long for others to learn why."""
MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""An MPI gives its ranks one of these."""
NUMERICS = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
"""Variables that change what a device computes: they must be equal on all ranks."""


@dataclass(frozen=True)
class Axis:
    """It is one axis of the mesh as this rank sees it."""

    size: int
    rank: int
    """Coordinate of this rank on the axis."""
    ranks: tuple[int, ...]
    """Global ranks of the group, by coordinate."""
    group: ProcessGroup

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def last(self) -> bool:
        return self.rank == self.size - 1

    def from_last(self, value: Any) -> Any:
        """It returns the value of the last rank, on each. Values must be small plain objects: they are pickled."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=self.ranks[-1], group=self.group)
        return values[0]


@dataclass(frozen=True)
class ParallelMesh:
    """The mesh holds process groups, coordinates and device of this rank."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    tensor: Axis
    pipeline: Axis
    data: Axis
    model: Axis
    """Tensor x pipeline: the ranks that together hold one replica."""
    stage: Axis
    """Tensor x data: the ranks that hold the same layers."""
    control: Levels
    """All ranks over gloo, with a short timeout: what ranks agree on in every step goes through it."""
    patient: Levels
    """All ranks over gloo, with the timeout of collectives: for what follows on work with files."""
    pipeline_control: ProcessGroup
    """The ranks of `pipeline` over gloo, with the short timeout."""
    timeout: timedelta
    """A collective that takes longer is taken for a lost peer."""

    @classmethod
    def create(
        cls,
        config: ParallelConfig,
        world: World | None = None,
        facts: Facts = MappingProxyType({}),
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> "ParallelMesh":
        """Join the world that the launcher described, by default in the environment, and make all groups.

        `facts` must be equal on all ranks. Until they have met, they leave when one is asked to stop.

        Raises:
            ValueError: the world size is not divisible by tensor x pipeline.
            WorldError: ranks were started differently, or cannot meet where they should.
            Stopped: a rank was asked to stop before all had met.
        """
        world = world or launched_world()
        device = torch.device("cpu")
        if torch.cuda.is_available():
            # A scheduler may show each task its own device alone: then every task's is number 0.
            world = replace(world, local_rank=world.local_rank % torch.cuda.device_count())
            device = torch.device("cuda", world.local_rank)
        join_world(config, world, facts, asked_to_stop)
        return cls.over_world(config, world.rank, world.size, world.local_rank, device)

    @classmethod
    def over_world(
        cls, config: ParallelConfig, rank: int, world_size: int, local_rank: int, device: torch.device
    ) -> "ParallelMesh":
        """Make the mesh over a world that exists already; every rank must call this."""
        model_size = config.model_size
        if world_size % model_size:
            raise ValueError(
                f"{world_size} ranks cannot be split into tensor {config.tensor} x pipeline {config.pipeline}"
            )
        grid = torch.arange(world_size).view(config.pipeline, world_size // model_size, config.tensor)
        timeout = timedelta(seconds=config.timeout_seconds)
        short = timedelta(seconds=config.control_timeout_seconds)

        def axis(rows: torch.Tensor) -> Axis:
            return _make_axis(rows.tolist(), rank, timeout)

        pipeline = axis(grid.permute(1, 2, 0).reshape(-1, config.pipeline))
        return cls(
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            device=device,
            tensor=axis(grid.reshape(-1, config.tensor)),
            pipeline=pipeline,
            data=axis(grid.permute(0, 2, 1).reshape(-1, world_size // model_size)),
            model=axis(grid.permute(1, 0, 2).reshape(-1, model_size)),
            stage=axis(grid.reshape(config.pipeline, -1)),
            control=Levels.over_world(rank, world_size, short),
            patient=Levels.over_world(rank, world_size, timeout),
            pipeline_control=make_group(list(pipeline.ranks), short, backend="gloo"),
            timeout=timeout,
        )

    @classmethod
    def alone(cls) -> "ParallelMesh":
        """Make the mesh of a process that nobody has launched: one rank, on the first accelerator if there is one.

        Layers and objectives then run as they do in training. Nothing is looked for in the environment or on a network;
        a process may call it again.
        """
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if not dist.is_initialized():
            with loopback():
                store = dist.HashStore()  # type: ignore[attr-defined]  # of its module it is no export
                dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        world = dist.group.WORLD
        assert world is not None
        assert world.size() == 1, "ranks that were launched are not alone"
        axis = Axis(size=1, rank=0, ranks=(0,), group=world)
        return cls(
            rank=0,
            world_size=1,
            local_rank=0,
            device=device,
            tensor=axis,
            pipeline=axis,
            data=axis,
            model=axis,
            stage=axis,
            control=Levels(()),
            patient=Levels(()),
            pipeline_control=world,
            timeout=timedelta(seconds=ParallelConfig().timeout_seconds),
        )

    def agree_sum(self, values: torch.Tensor, *, patient: bool = False) -> torch.Tensor:
        """It returns the sum of a CPU tensor over all ranks, the same bytes on each.

        `patient` waits as long as collectives do, for ranks that are busy with files.
        """
        return (self.patient if patient else self.control).sum(values)

    def agree_any(self, flag: bool) -> bool:
        """It is true on all ranks if `flag` is true on one."""
        return bool(self.agree_sum(torch.tensor([int(flag)]), patient=True).item())

    def gather(self, value: Any) -> list[Any]:
        """It returns the values of all ranks by rank, on each of them; it waits for ranks that are busy with files.

        Values must be small plain objects: they are pickled.
        """
        return self.patient.gather(value)

    @property
    def device_name(self) -> str:
        """It is the name of the accelerator as its vendor writes it, or `CPU`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"


@contextmanager
def loopback() -> Iterator[None]:
    """Within it gloo listens on the loopback interface, and does not look up the name of this host, which takes long
    where names are not served."""
    before = os.environ.get(INTERFACE)
    os.environ[INTERFACE] = "lo"
    try:
        yield
    finally:
        if before is None:
            del os.environ[INTERFACE]
        else:
            os.environ[INTERFACE] = before


def _make_axis(rows: list[list[int]], rank: int, timeout: timedelta) -> Axis:
    """It returns the axis of this rank's row, in whose group all of it take part; every rank must call this."""
    ranks = next(row for row in rows if rank in row)
    return Axis(size=len(ranks), rank=ranks.index(rank), ranks=tuple(ranks), group=make_group(ranks, timeout))


def is_peer_loss(error: BaseException) -> bool:
    """It tells whether a collective failed because another rank is gone or did not answer in time.

    NCCL and the rendezvous raise a DistError; gloo raises a bare RuntimeError that only its text tells from others.
    """
    if isinstance(error, dist.DistError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("/gloo/" in text or "Connection closed by peer" in text)


def launched_world() -> World:
    """It returns what the launcher of this process says about the world, and raises WorldError as that does."""
    return describe_world(os.environ)


def join_world(config: ParallelConfig, world: World, facts: Facts, asked_to_stop: Callable[[], bool]) -> None:
    """Initialise torch.distributed once all ranks have met."""
    take_place(world)
    if world.threads:
        os.environ[THREADS] = str(world.threads)  # for processes that this one starts
        torch.set_num_threads(world.threads)
    if config.tensor > 1:
        # Megatron overlaps the all-reduce of input gradients with the product for the weight's: one queue keeps
        # the order. CUDA reads it when the first context is made.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    timeout = timedelta(seconds=config.timeout_seconds)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    facts = {**facts, "backend": backend, **{name: os.environ.get(name, "unset") for name in NUMERICS}}
    if (
        backend == "gloo"
    ):  # updates of replicas that use other instructions of their CPUs are not equal to the bit
        facts["instructions of the CPU"] = torch.backends.cpu.get_cpu_capability()
    speak = report if world.local_rank == 0 else lambda text: None
    store = meet(meeting_place(world), facts, timeout, asked_to_stop, speak)
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    choose_interface(os.environ, world.address)
    dist.init_process_group(
        backend=backend, timeout=timeout, store=store, rank=world.rank, world_size=world.size
    )


def take_place(world: World, environment: MutableMapping[str, str] = os.environ) -> None:
    """It tells libraries the place of this rank, and takes from them what another launcher has left of one.

    DeepSpeed's PipelineModule and launch-time checks read these variables themselves, also under srun.
    """
    for name in left_over(environment):
        del environment[name]
    environment.update(world.variables)


def share_failure(text: str, world: World) -> None:
    """Tell the other ranks why this one cannot start, so that none waits for it; where all fail alike, that is all."""
    with suppress(WorldError, dist.DistError):
        if world.size > 1:
            meet(meeting_place(world), {FAILURE: text}, SHARING)


def output_is_collected(environment: Mapping[str, str] = os.environ) -> bool:
    """It tells whether what ranks print goes to a log, whatever it looks like: `mpirun` gives each a terminal."""
    in_ci = environment.get("CI", "").lower() not in ("", "0", "false")
    return in_ci or not environment.keys().isdisjoint(MPI_RANKS)


def meeting_place(world: World) -> Place:
    """It returns where the ranks of a world meet.

    Raises:
        WorldError: the host of rank 0 has no address. Schedulers name hosts that have one; those of containers may get
            theirs later.
    """
    if world.scheduled:
        try:
            socket.getaddrinfo(world.address, world.port)
        except socket.gaierror as error:
            raise WorldError(
                f"MASTER_ADDR={world.address}: {error.strerror}; set it to an address of the first host"
            ) from None
    return Place(world.rank, world.size, world.address, world.port, hosted=world.hosted, launch=world.launch)


def report(text: str) -> None:
    """It tells people what a rank waits for."""
    print(f"surefoot: {text}", file=sys.stderr, flush=True)
