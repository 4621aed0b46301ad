"""The command line depends on these facts about this machine, which are found without torch."""

import os
import random
import shutil
import socket
from contextlib import suppress
from pathlib import Path

from launch.command import Machine

DEVICE_FILES = ("nvidia[0-9]*", "dri/renderD*", "davinci[0-9]*", "accel/accel[0-9]*", "hl[0-9]*")
"""These are device files below /dev of NVIDIA; AMD and Intel; Ascend; Gaudi accelerators."""
COMPUTE_DRIVERS = ("kfd", "nvidiactl", "davinci_manager", "accel", "hl0")
"""These lie below /dev only where a compute driver runs; a render node alone may be a display."""
PASSED_ON = ("OMP_", "NCCL_", "GLOO_", "UCX_", "DS_")
"""Variables with these beginnings are about threads, networks and devices."""

PORTS = range(10000, 20000)
"""Ports below those that Linux gives to whoever asks for any (from 32768 on), and below those of `parallel.world`."""
ATTEMPTS = 100


def this_machine() -> Machine:
    """It collects the facts."""
    tasks = os.environ.get("SLURM_NTASKS", "") if "SLURM_JOB_ID" in os.environ else ""
    return Machine(
        accelerators=count_accelerators(Path("/dev")),
        visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        free_port=free_port(),
        names=frozenset({"localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn()}),
        programs=frozenset(filter(shutil.which, Machine.programs)),
        passed_on=tuple(sorted(name for name in os.environ if name.startswith(PASSED_ON))),
        allocated_tasks=int(tasks) if tasks.isdecimal() else None,
    )


def count_accelerators(devices: Path) -> int:
    """It counts device files of the first kind that there is; the count is 0 without a compute driver."""
    if not any((devices / driver).exists() for driver in COMPUTE_DRIVERS):
        return 0
    counts = (len(list(devices.glob(pattern))) for pattern in DEVICE_FILES)
    return next(filter(None, counts), 0)


def free_port() -> int:
    """It returns a TCP port that is free now, and that is given to nobody who asks for any: it takes seconds until rank
    0 listens there, in which other programs connect and listen."""
    for port in random.SystemRandom().sample(PORTS, ATTEMPTS):
        with suppress(OSError):
            return _bound(port)
    return _bound(0)


def _bound(port: int) -> int:
    """It returns a port that can be listened at, with 0 any. Raises OSError."""
    with socket.socket() as probe:
        probe.bind(("", port))
        return int(probe.getsockname()[1])
