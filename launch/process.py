"""This module runs the launcher to its end: it passes signals on to all ranks and makes sense of how it ended."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from data_pipeline.shown import masked, shown_lines
from launch.children import child_environment
from launch.command import Command, LaunchOptions
from launch.hang_detector import Trouble
from launch.hosts import host_environment
from launch.outcome import REQUESTS, Ending, Outcome, last_step, outcome_of
from launch.ranks import find_ranks, send
from launch.reap import reap
from launch.remote import on_hosts
from launch.run_progress import is_done, is_preempted, records
from pretrain.errors import PeerLost, Preempted
from pretrain.run_folder import LEDGER, METRICS

POLL_SECONDS = 0.2
SIGNAL_SECONDS = 60.0
"""A signal has so long to reach the ranks of all hosts."""
ORPHAN_SECONDS = 600.0
"""Ranks whose launcher was killed have so long to seal a checkpoint."""
REAP_SECONDS = 90.0
"""`launch.reap` has so long to start on all hosts and to end what is left there."""

Look = Callable[[], Trouble | None]
"""It looks at a running launch; what it finds wrong ends the launch."""


@dataclass(frozen=True)
class Remains:
    """It says what a launch has left behind."""

    orphans: int
    """So many processes of ranks were found on this machine and asked to stop."""
    problem: str = ""
    """It says why something may be left: a host does not answer, a process does not end."""


@dataclass
class Launch:
    """A launch is a running launcher and the signals that it still has to pass on."""

    command: Command
    options: LaunchOptions
    run_folder: Path
    process: subprocess.Popen[bytes]
    pending: deque[int] = field(default_factory=deque)
    stopping: bool = False
    """It is true once a signal has reached the ranks: they were asked to seal a checkpoint and stop."""
    killed: bool = False
    """It is true once the ranks were ended at once, and have no use for more time."""

    @classmethod
    def start(
        cls, command: Command, options: LaunchOptions, run_folder: Path, pending: deque[int]
    ) -> "Launch":
        """It starts the launcher in a session of its own: Ctrl-C reaches it only through us."""
        environment = {**child_environment(), **command.environment}
        kept = {name: value for name, value in environment.items() if command.environment.get(name) != ""}
        with os.fdopen(os.memfd_create("variables"), "w") as file:
            if options.slots is not None and not options.by_scheduler:
                # DeepSpeed puts the current directory on the search path of hosts; what it reads here comes after that.
                file.write(host_environment(kept["PYTHONPATH"]))
                file.flush()
                kept["DS_ENV_FILE"] = f"/proc/self/fd/{file.fileno()}"
            process = subprocess.Popen(
                command.argv, env=kept, start_new_session=True, pass_fds=[file.fileno()]
            )
        return cls(command, options, run_folder, process, pending)

    @property
    def asked_to_stop(self) -> bool:
        """It is true once a signal has come, also one that found no ranks to be passed on to: a service manager signals
        all processes at once, and the launcher dies of it before ours is passed on."""
        return self.stopping or bool(self.pending)

    @property
    def ended(self) -> bool:
        """It is true when the launcher has ended, which is not reaped yet: until `finish` its id is nobody else's."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self.process.returncode is not None or os.waitid(os.P_PID, self.process.pid, how) is not None

    def wait(self, look: Look = lambda: None) -> Trouble | None:
        """It waits for the end and passes signals on meanwhile; it returns early with what `look` finds wrong."""
        while not self.ended:
            if trouble := look():
                return trouble
            if self.pending and self.deliver(self.pending[0]):
                self.pending.popleft()
            time.sleep(POLL_SECONDS)
        return None

    def await_end(self, seconds: float) -> None:
        """It waits for the end, but no longer than so many seconds; SIGINT cuts that short."""
        deadline = time.monotonic() + seconds
        while not self.ended and time.monotonic() < deadline and signal.SIGINT not in self.pending:
            time.sleep(POLL_SECONDS)

    def deliver(self, signal_number: int) -> bool:
        """It passes one signal on, and returns false while there are no ranks yet.

        SIGINT and SIGHUP ask the ranks to stop as SIGTERM does; a second SIGINT ends everything at once. Ranks do not
        learn themselves that their terminal is gone.
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
        """It signals every rank once, and returns false when none could be reached."""
        if self.options.by_scheduler:
            # srun and mpirun pass SIGUSR1 on to all ranks, but take SIGTERM as an order to end them.
            order = signal.SIGTERM if signal_number == signal.SIGKILL else signal.SIGUSR1
            return send([psutil.Process(self.process.pid)], order) > 0
        if self.options.slots is None:
            return send(find_ranks(self.command.master_port), signal_number) > 0
        words = [str(self.command.master_port), signal_number.name]
        return not on_hosts(self.options, "launch.ranks", words, SIGNAL_SECONDS)

    def kill(self) -> None:
        """It ends ranks and launcher at once."""
        self.killed = True
        self.signal_ranks(signal.SIGKILL)
        if not self.options.by_scheduler:
            os.killpg(self.process.pid, signal.SIGKILL)

    def finish(self, grace: float) -> Remains:
        """It ends what is left of ranks, after `grace` seconds to seal a checkpoint, and of the launcher."""
        remains = self.silence(0.0 if self.killed else grace)
        # No other signal will do: DeepSpeed answers SIGTERM by killing all launchers of this user on the hosts.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return remains

    def silence(self, grace: float) -> Remains:
        """It ends what is left of ranks, on every host that we reach; SIGINT cuts the grace short.

        `srun` and `mpirun` end ranks themselves, on all hosts.
        """
        if self.options.by_scheduler:
            for number, seconds in ((signal.SIGUSR1, grace), (signal.SIGKILL, SIGNAL_SECONDS)):
                if seconds and not self.ended:
                    self.signal_ranks(number)
                    self.await_end(seconds)
            return Remains(0, "" if self.ended else f"{self.command.argv[0]} does not end")
        port = self.command.master_port
        if self.options.slots is not None:
            words = [str(port), str(grace), str(self.run_folder)]
            return Remains(0, on_hosts(self.options, "launch.reap", words, grace + REAP_SECONDS))
        found, left = reap(port, grace, self.run_folder, lambda: signal.SIGINT in self.pending)
        return Remains(found, f"{left} processes do not end" if left else "")


def run(command: Command, options: LaunchOptions, run_folder: Path) -> Ending:
    """It starts the command and stays until that has ended; ranks that outlive their launcher are ended."""
    with forwarding() as pending:
        launch = Launch.start(command, options, run_folder, pending)
        launch.wait()
        remains = launch.finish(ORPHAN_SECONDS)
    return Ending(launch.process.returncode, launch.asked_to_stop, remains.orphans)


def run_to_end(command: Command, options: LaunchOptions, run_folder: Path, steps: int) -> int:
    """It trains for `steps` steps in one launch, says why that failed if it did, and returns the exit code."""
    known = len(records(run_folder))
    ending = run(command, options, run_folder)
    outcome = outcome_of(ending, last_step(run_folder / METRICS), steps)
    if options.slots is None or (run_folder / LEDGER).exists():
        outcome = believed(outcome, ending, run_folder, known)
    if outcome.reason:
        note(outcome.reason)
    return outcome.exit_code


def believed(outcome: Outcome, ending: Ending, run_folder: Path, known: int) -> Outcome:
    """It returns what the ledger says behind its first `known` records, where the launcher says something else."""
    if outcome.exit_code == 0 and not is_done(run_folder, known):
        return Outcome(
            PeerLost.exit_code, f"the launcher ended well, but the ledger of {run_folder} has no `done`"
        )
    if is_preempted(run_folder, known) and (ending.stopping or not ending.orphans):
        return Outcome(
            Preempted.exit_code
        )  # the launcher was signalled as well, and its code tells that alone
    if outcome.before_training and len(records(run_folder)) > known:
        return Outcome(PeerLost.exit_code, "the ranks were ended before they had sealed a checkpoint")
    return outcome


@contextmanager
def forwarding() -> Iterator[deque[int]]:
    """It collects the signals that are to be passed on; SIGHUP is not where it is ignored, as under nohup."""
    pending: deque[int] = deque()

    def collect(signal_number: int, frame: FrameType | None) -> None:
        pending.append(signal_number)

    hangup_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    heeded = [number for number in REQUESTS if not (number == signal.SIGHUP and hangup_ignored)]
    previous = {number: signal.signal(number, collect) for number in heeded}
    try:
        yield pending
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def note(message: str) -> None:
    """It prints a line for people, beside what the command prints for scripts; whether they read it changes nothing."""
    with suppress(OSError, ValueError):
        print(f"surefoot: {shown_lines(masked(message))}", file=sys.stderr, flush=True)
