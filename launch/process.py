"""Runs the launcher to its end: passes signals on to all ranks and makes sense of how it ended."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import psutil

from launch.command import REMOTE_SHELL_LAUNCHER, Command, LaunchOptions
from launch.outcome import Ending
from launch.ranks import children, find_orphans, find_ranks, send

FORWARDED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
POLL_SECONDS = 0.2


@dataclass
class Launch:
    """A running launcher and the signals that it still has to pass on."""

    command: Command
    options: LaunchOptions
    process: subprocess.Popen[bytes]
    pending: deque[int] = field(default_factory=deque)
    stopping: bool = False
    """A signal has reached the ranks: they were asked to seal a checkpoint and stop."""

    def wait(self) -> int:
        """Wait for the end, passing signals on meanwhile; returns the launcher's return code."""
        while self.process.poll() is None:
            if self.pending and self.deliver(self.pending[0]):
                self.pending.popleft()
            time.sleep(POLL_SECONDS)
        return self.process.returncode

    def deliver(self, signal_number: int) -> bool:
        """Pass one signal on; false while there are no ranks yet.

        SIGINT asks the ranks to stop as SIGTERM does, a second one ends everything at once.
        """
        if signal_number == signal.SIGINT and self.stopping:
            self.kill()
            return True
        asked = signal.SIGUSR1 if signal_number == signal.SIGUSR1 else signal.SIGTERM
        reached = self.signal_ranks(asked)
        if reached and signal_number == signal.SIGINT:
            note("stopping after this step; Ctrl-C again ends the run at once")
        self.stopping = self.stopping or reached
        return reached

    def signal_ranks(self, signal_number: signal.Signals) -> bool:
        """Signal every rank once; false when none could be reached."""
        if self.options.slots is None:
            return send(find_ranks(self.command.master_port), signal_number) > 0
        if self.options.launcher == REMOTE_SHELL_LAUNCHER:
            return self.signal_hosts(signal_number)
        # mpirun and srun pass SIGUSR1 on to all ranks, but take SIGTERM for themselves.
        return send(children(psutil.Process(self.process.pid)), signal.SIGUSR1) > 0

    def signal_hosts(self, signal_number: signal.Signals) -> bool:
        """Have `launch.ranks` run on every host of the hostfile."""
        remote = [sys.executable, "-m", "launch.ranks", str(self.command.master_port), signal_number.name]
        shell = f"cd {shlex.quote(os.getcwd())}; {shlex.join(remote)}"
        argv = ["pdsh", "-S", "-w", ",".join(self.options.slots or ()), shell]
        return subprocess.run(argv, env=pdsh_environment(self.options), check=False).returncode == 0

    def kill(self) -> None:
        """End ranks and launcher at once."""
        self.signal_ranks(signal.SIGKILL)
        os.killpg(self.process.pid, signal.SIGKILL)


def run(command: Command, options: LaunchOptions) -> Ending:
    """Start the command and stay until it has ended; ranks that outlive their launcher are ended."""
    environment = {**os.environ, **command.environment}
    environment = {name: value for name, value in environment.items() if command.environment.get(name) != ""}
    # A session of its own: Ctrl-C reaches the launcher only through us.
    process = subprocess.Popen(command.argv, env=environment, start_new_session=True)
    launch = Launch(command, options, process)
    with forwarding(launch.pending):
        code = launch.wait()
    orphans = find_orphans(command.master_port) if options.slots is None else []
    send(orphans, signal.SIGTERM)
    return Ending(code, launch.stopping, len(orphans))


@contextmanager
def forwarding(pending: deque[int]) -> Iterator[None]:
    """Collect the signals that are to be passed on."""

    def collect(signal_number: int, frame: FrameType | None) -> None:
        pending.append(signal_number)

    previous = {number: signal.signal(number, collect) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def pdsh_environment(options: LaunchOptions) -> dict[str, str]:
    """The environment that makes pdsh use ssh, and the port that the user gave."""
    environment = {**os.environ, "PDSH_RCMD_TYPE": "ssh"}
    if options.ssh_port:
        given = environment.get("PDSH_SSH_ARGS_APPEND", "")
        environment["PDSH_SSH_ARGS_APPEND"] = f"{given} -p {options.ssh_port}".strip()
    return environment


def note(message: str) -> None:
    print(f"surefoot: {message}", file=sys.stderr, flush=True)
