"""This module runs a command of ours on all hosts of a hostfile, over the ssh that the launcher uses."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from data_pipeline.shown import shown
from launch.children import child_environment
from launch.command import LaunchOptions

SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
"""With these a host that is gone is noticed within seconds, and no password is asked for."""


def on_hosts(options: LaunchOptions, module: str, words: Sequence[str], seconds: float) -> str:
    """It runs `python -m MODULE WORDS...` on every host and returns what went wrong, nothing where all exit with 0."""
    environment = child_environment()
    path = f"PYTHONPATH={environment['PYTHONPATH']}"
    remote = shlex.join(["env", path, sys.executable, "-P", "-m", module, *words])
    shell = f"cd {shlex.quote(os.getcwd())}; {remote}".replace("%", "%%")  # pdsh expands %h, %n and %u
    process = subprocess.Popen(
        ["pdsh", "-S", "-w", ",".join(options.slots or ()), shell],
        env=pdsh_environment(options, environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"no answer from all hosts within {seconds:.0f} s"
    if process.returncode == 0:
        return ""
    return shown("; ".join(errors.strip().splitlines())) or f"pdsh ended with {process.returncode}"


def pdsh_environment(options: LaunchOptions, environment: Mapping[str, str]) -> dict[str, str]:
    """It adds to an environment that pdsh uses ssh as the launcher does, with the port that the user gave."""
    given = environment.get("PDSH_SSH_ARGS_APPEND", "")
    port = f"-p {options.ssh_port}" if options.ssh_port else ""
    arguments = " ".join(filter(None, (given, SSH_OPTIONS, port)))
    return {**environment, "PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": arguments}
