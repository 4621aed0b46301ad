"""A lack of memory or of threads is told from faults of ours, by what torch, CUDA and the system say."""

import errno
import os
from collections.abc import Callable

import pytest
import torch

from data_pipeline.preparing.command_line import EXIT_DATA, exit_code
from data_pipeline.shortage import lacks_memory, shortage


def raising(error: Exception) -> Callable[[], None]:
    """It returns what ends with this error."""

    def fail() -> None:
        raise error

    return fail


def raised_by(action: Callable[[], object]) -> Exception:
    """It returns how an action ends."""
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("it works")


@pytest.mark.parametrize(
    "error",
    [
        raised_by(lambda: torch.empty(2**50, dtype=torch.uint8)),
        raised_by(lambda: bytes(2**50)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
        torch.distributed.DistBackendError("NCCL error: Cuda failure 2 'out of memory'"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lack_of_memory(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert lacks_memory(error)
    assert shortage(error).startswith("the memory does not suffice")
    assert "\n" not in shortage(error)
    assert exit_code(raising(error)) == EXIT_DATA
    assert capsys.readouterr().err == f"surefoot prepare: error: {shortage(error)}\n"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("can't start new thread"),
        RuntimeError("Resource temporarily unavailable"),
        BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
    ],
    ids=str,
)
def test_a_lack_of_threads(error: Exception) -> None:
    assert not lacks_memory(error)
    assert shortage(error).startswith("no more threads or processes can be started")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at .../gloo/transport/tcp/loop.cc:105] fd_ != -1. epoll_create: Too many open files"
        ),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE), "runs/x"),
        OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lack_of_open_files(error: Exception) -> None:
    assert shortage(error).startswith("no more files can be opened here (`ulimit -n`): ")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/gloo/transport/tcp/pair.cc:553] Resource temporarily unavailable"),
        raised_by(lambda: torch.zeros(1) @ torch.zeros(2)),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError("out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_all_else(error: Exception) -> None:
    assert shortage(error) == ""
