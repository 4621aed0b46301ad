"""Open MPI's `mpirun` starts ranks on this machine, where it is installed."""

import os
import shutil
import subprocess

import psutil
import pytest


def why_not() -> str:
    """It returns the reason why ranks cannot be started by Open MPI here; empty where they can."""
    if not shutil.which("mpirun"):
        return "needs mpirun"
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout
    return "" if "Open MPI" in version else "needs Open MPI; this mpirun is another one"


needs_mpirun = pytest.mark.skipif(bool(why_not()), reason=why_not())


def signal_mpirun(shell: int, number: int) -> None:
    """It signals the `mpirun` that a shell has started, or has become."""
    family = [psutil.Process(shell), *psutil.Process(shell).children(recursive=True)]
    os.kill(next(process.pid for process in family if process.name().startswith("mpirun")), number)
