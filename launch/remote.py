"""This module runs a command of ours on all hosts of a hostfile, over the ssh that the launcher uses."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.shown import shown
from launch.children import child_environment
from launch.command import LaunchOptions

SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=10 -o ServerAliveCountMax=3"
"""With these a host that is gone is noticed within seconds, and no password is asked for."""


ANSWER = "surefoot-answer"
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Answers:
    """These are the answers of hosts to a command, as far as they came."""

    codes: Mapping[str, int]
    """Host -> exit code of the command."""
    silent: tuple[str, ...] = ()
    """These hosts have not answered."""
    said: str = ""
    """It is what pdsh said of them, if anything."""

    @property
    def problem(self) -> str:
        """It says what went wrong; it is empty where all hosts have answered with 0."""
        if not self.silent:
            failed = ", ".join(host for host, code in self.codes.items() if code)
            return self.said or f"not done on {failed}" if failed else ""
        return f"no answer from {', '.join(self.silent)}" + (f" ({self.said})" if self.said else "")


def answer(code: int, names: Sequence[str]) -> int:
    """It prints the answer of this host, which is called by these names, and returns the exit code."""
    for name in names:
        print(ANSWER, name, code, flush=True)
    return code


def on_hosts(
    options: LaunchOptions,
    module: str,
    words: Sequence[str],
    seconds: float,
    hurry: Callable[[], bool] = lambda: False,
) -> Answers:
    """It runs `python -m MODULE WORDS... HOST` on every host and returns their answers.

    Hosts have so many seconds for them, and no more time once it is true that we are in a `hurry`.
    """
    environment = child_environment()
    path = f"PYTHONPATH={environment['PYTHONPATH']}"
    remote = shlex.join(["env", path, sys.executable, "-P", "-m", module, *words])
    shell = f"cd {shlex.quote(os.getcwd())}; {remote}".replace("%", "%%")
    hosts = [host.rpartition("@")[2] for host in options.slots or ()]
    process = subprocess.Popen(
        ["pdsh", "-S", "-w", ",".join(options.slots or ()), f"{shell} %h"],  # which pdsh replaces by the host
        env=pdsh_environment(options, environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
    )
    output, errors = outputs(process, time.monotonic() + seconds, hurry)
    found = {match[1]: int(match[2]) for match in re.finditer(rf"{ANSWER} (\S+) (\d+)", output)}
    said = shown("; ".join(errors.strip().splitlines()))
    return Answers(found, tuple(host for host in hosts if host not in found), said)


def outputs(process: "subprocess.Popen[str]", deadline: float, hurry: Callable[[], bool]) -> tuple[str, str]:
    """It returns all that a process has printed on both streams until its end, which comes by then or in a hurry."""
    while True:
        try:
            return process.communicate(timeout=POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if hurry() or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                return process.communicate()


def pdsh_environment(options: LaunchOptions, environment: Mapping[str, str]) -> dict[str, str]:
    """It adds to an environment that pdsh uses ssh as the launcher does, with the port that the user gave."""
    given = environment.get("PDSH_SSH_ARGS_APPEND", "")
    port = f"-p {options.ssh_port}" if options.ssh_port else ""
    arguments = " ".join(filter(None, (given, SSH_OPTIONS, port)))
    return {**environment, "PDSH_RCMD_TYPE": "ssh", "PDSH_SSH_ARGS_APPEND": arguments}
