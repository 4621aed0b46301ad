"""The rig runs a plain function on several ranks of this machine: over gloo, or on GPUs over NCCL.

Ranks are forked from a server that has imported torch, DeepSpeed and Megatron once (`rank_imports`) and take one
function after the other. Hooks of torch keep many an engine alive, and with it process groups, of whose threads each
wakes up a hundred times a second: ranks that have threads left after a function are replaced by fresh ones.

With `SUREFOOT_TEST_DEVICE=cuda` every rank has a GPU of its own, and a test that needs more than there are is skipped.
A process that has looked at a GPU cannot be forked: then ranks are started one by one.
"""

import atexit
import faulthandler
import gc
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch.utils._pytree import tree_map

Result = TypeVar("Result")

TIMEOUT_SECONDS = 120.0
COLLECTIVE_TIMEOUT_SECONDS = 60
DEVICE_TYPE = os.environ.get("SUREFOOT_TEST_DEVICE", "cpu")
THREADS_LEFT = {"cpu": 0, "cuda": 300}[DEVICE_TYPE]
"""Threads that ranks may keep from functions before. Where they cannot be forked, they take seconds to start."""
ASK_FOR_STACK = signal.SIGRTMIN


class RankFailed(AssertionError):
    """A rank raised, died or did not answer; the message holds the tracebacks or stacks of all ranks."""


def run_distributed(
    function: Callable[..., Result], world_size: int, *arguments: Any, timeout: float = TIMEOUT_SECONDS
) -> list[Result]:
    """It calls `function(*arguments)` on `world_size` ranks with torch.distributed initialised; returns results by
    rank.

    The function and its arguments must be picklable (defined at the top level of a test module).
    """
    if DEVICE_TYPE == "cuda" and world_size > torch.cuda.device_count():
        pytest.skip(f"needs {world_size} devices")
    pool = _pool(world_size)
    try:
        return pool.run(function, arguments, timeout)
    except RankFailed:
        pool.kill()
        raise


class _Pool:
    """It holds ranks that wait for functions."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._connections: list[Connection] = []
        self._processes: list[Any] = []
        atexit.register(self.kill)

    def _start(self) -> None:
        if DEVICE_TYPE == "cpu":
            _start_server()
        context = multiprocessing.get_context("forkserver" if DEVICE_TYPE == "cpu" else "spawn")
        self._stacks = Path(tempfile.mkdtemp(prefix="ranks-"))
        store = self._stacks / "store"
        for rank in range(self._world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(theirs, rank, self._world_size, str(store), str(self._stacks)),
                daemon=True,
            )
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], timeout: float) -> list[Any]:
        if not self._processes:
            self._start()
        for rank, connection in enumerate(self._connections):
            try:
                connection.send((function, arguments))
            except BrokenPipeError:
                raise RankFailed(f"rank {rank} had died before{self._epitaph(rank)}") from None
        answers: dict[int, tuple[bool, Any]] = {}
        while len(answers) < len(self._connections):
            open_ones = [c for rank, c in enumerate(self._connections) if rank not in answers]
            ready = wait(open_ones, timeout)
            if not ready:
                raise RankFailed(f"no answer within {timeout} s\n{self._dump()}")
            for connection in ready:
                rank = self._connections.index(connection)
                try:
                    answers[rank] = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise RankFailed(f"rank {rank} died{self._epitaph(rank)}\n{self._dump()}") from None
                if not answers[rank][0]:
                    # The others may wait for this one in a collective: they have a moment to fail as well.
                    timeout = 5.0
                    if len(answers) < len(self._connections) and not wait(open_ones, timeout):
                        raise RankFailed(f"rank {rank}:\n{answers[rank][1]}\n{self._dump()}")
        failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in sorted(answers.items()) if not ok]
        if failures:
            raise RankFailed("\n".join(failures))
        if max(self._threads_left()) > THREADS_LEFT:
            self.kill()
        return [answer for _, (_, answer) in sorted(answers.items())]

    def _threads_left(self) -> list[int]:
        """It returns how many threads of functions each rank still has, once it has left their groups."""
        try:
            if all(connection.poll(COLLECTIVE_TIMEOUT_SECONDS) for connection in self._connections):
                return [connection.recv() for connection in self._connections]
        except (EOFError, ConnectionResetError):
            pass
        raise RankFailed(f"not all ranks have left their groups\n{self._dump()}")

    def kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        for connection in self._connections:
            connection.close()
        self._processes, self._connections = [], []

    def _epitaph(self, rank: int) -> str:
        self._processes[rank].join(1.0)
        return f" with exit code {self._processes[rank].exitcode}"

    def _dump(self) -> str:
        """It returns the stacks of the ranks that are still alive."""
        for process in self._processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, ASK_FOR_STACK)
        multiprocessing.connection.wait([p.sentinel for p in self._processes], 0.5)
        return "\n".join(
            f"stack of {path.stem}:\n{path.read_text()}" for path in sorted(self._stacks.glob("*.stack"))
        )


@lru_cache
def _pool(world_size: int) -> _Pool:
    return _Pool(world_size)


def _start_server() -> None:
    """It has the server of ranks running, which finds modules by its environment alone, and skips what it does not
    find."""
    forkserver.set_forkserver_preload(["support.rank_imports"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()


def _serve(connection: Connection, rank: int, world_size: int, store: str, stacks: str) -> None:
    """It is the life of a rank."""
    from datetime import timedelta

    import torch.distributed as dist

    if DEVICE_TYPE == "cpu" and not gc.get_freeze_count():
        raise ImportError("the server of ranks could not import support.rank_imports")
    faulthandler.register(ASK_FOR_STACK, file=open(f"{stacks}/rank{rank}.stack", "w"))  # noqa: SIM115
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    # As DeepSpeed's launcher does. Without the size it calls `numactl` in every reduction of ZeRO-3 to count devices.
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if DEVICE_TYPE == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "gloo" if DEVICE_TYPE == "cpu" else "cpu:gloo,cuda:nccl",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_SECONDS),
    )
    threads = _count_threads()
    for call in count():
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        _name_groups_by(call)
        try:
            connection.send((True, tree_map(_on_host, function(*arguments))))
        except BaseException:
            connection.send((False, traceback.format_exc()))
            continue  # until this rank and the others are ended
        # A group is whole for one rank while another still connects, which fails if the first one leaves.
        dist.barrier()
        _leave_groups()
        connection.send(_count_threads() - threads)


def _count_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _on_host(value: Any) -> Any:
    """It copies a tensor of a device, which would be sent by reference, to the host."""
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _name_groups_by(call: int) -> None:
    """It tells names of groups from those of earlier calls. torch names a group that its members alone make by their
    ranks and the number of groups, and the store still has the addresses of members that have left."""
    from torch.distributed import distributed_c10d as c10d

    c10d._hash_ranks_to_str = lambda ranks: f"{call}, {len(c10d._world.pg_names)}: {ranks}"


def _leave_groups() -> None:
    """It destroys all groups but the world: each has threads of its own, and a session makes thousands."""
    from deepspeed.utils import groups
    from torch.distributed import distributed_c10d as c10d

    for group in list(c10d._world.pg_map):
        if group is not c10d.GroupMember.WORLD:
            c10d.destroy_process_group(group)
    groups._WORLD_GROUP = None
    gc.collect()


def free_port() -> int:
    """It returns a TCP port on the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
