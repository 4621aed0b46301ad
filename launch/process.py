"""This module runs the launcher to its end: it passes signals on to all ranks and makes sense of how it ended."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

from data_pipeline.shown import masked, shown_lines
from launch.children import child_environment
from launch.command import Command, LaunchOptions
from launch.hang_detector import Trouble
from launch.hosts import host_environment
from launch.outcome import IF_HEEDED, REQUESTS, REVOKED, Ending, Outcome, last_step, outcome_of
from launch.ranks import LAUNCH, find_ranks, send
from launch.reap import reap
from launch.remote import on_hosts
from launch.run_progress import is_done, is_preempted, records
from launch.slurm_queue import in_queue
from pretrain.errors import PeerLost, Preempted
from pretrain.run_folder import LEDGER, METRICS
from pretrain.runtime.stacks import REQUEST

POLL_SECONDS = 0.2
SIGNAL_SECONDS = 60.0
"""A signal has so long to reach the ranks of all hosts."""
ORPHAN_SECONDS = 600.0
"""Ranks whose launcher was killed have so long to seal a checkpoint."""
REAP_SECONDS = 90.0
"""`launch.reap` has so long to start on all hosts and to end what is left there."""
HURRIED_SECONDS = 20.0
"""It has so long where everything is to end at once."""
MARKS = range(2**20, 2**40)
"""The numbers of launches by `mpirun` are of these, and are no ports."""

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
    mark: int = 0
    """Ranks of this launch are known by this number; it is the port where DeepSpeed starts them."""
    undelivered: int | None = None
    """This signal has not reached all ranks yet."""
    stopping: bool = False
    """It is true once a signal has reached ranks: they were asked to seal a checkpoint and stop."""
    killed: bool = False
    """It is true once the ranks were ended at once, and have no use for more time."""
    tried: bool = False
    """It is true once ranks were asked to stop, whether they were reached or not."""
    known_problem: str = ""
    """It was told last why a signal does not reach all ranks."""

    @classmethod
    def start(
        cls, command: Command, options: LaunchOptions, run_folder: Path, pending: deque[int]
    ) -> "Launch":
        """It starts the launcher in a session of its own: Ctrl-C reaches it only through us."""
        mark, marks = command.master_port, {LAUNCH: ""}
        if options.launcher == "openmpi":
            mark = random.SystemRandom().choice(MARKS)
            marks = {LAUNCH: str(mark)}
        changes = {**marks, **command.environment}
        environment = {**child_environment(), **changes}
        kept = {name: value for name, value in environment.items() if changes.get(name) != ""}
        with os.fdopen(os.memfd_create("variables"), "w") as file:
            if options.slots is not None and not options.by_scheduler:
                # DeepSpeed puts the current directory on the search path of hosts; what it reads here comes after that.
                file.write(host_environment(kept["PYTHONPATH"]))
                file.flush()
                kept["DS_ENV_FILE"] = f"/proc/self/fd/{file.fileno()}"
            process = subprocess.Popen(
                command.argv, env=kept, start_new_session=True, pass_fds=[file.fileno()]
            )
        return cls(command, options, run_folder, process, pending, mark)

    @property
    def asked_to_stop(self) -> bool:
        """It is true once a signal has come, also one that found no ranks to be passed on to: a service manager signals
        all processes at once, and the launcher dies of it before ours is passed on."""
        return self.stopping or not {self.undelivered, *self.pending}.isdisjoint(REQUESTS)

    @property
    def insisted(self) -> bool:
        """It is true once SIGINT has come after another request."""
        return signal.SIGINT in self.pending and (self.stopping or self.undelivered in REQUESTS)

    @property
    def ended(self) -> bool:
        """It is true when the launcher has ended, which is not reaped yet: until `finish` its id is nobody else's."""
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self.process.returncode is not None or os.waitid(os.P_PID, self.process.pid, how) is not None

    @property
    def was_killed(self) -> bool:
        """It is true when a signal has ended the launcher."""
        if self.process.returncode is not None:
            return self.process.returncode < 0
        how = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return how is not None and how.si_code in (os.CLD_KILLED, os.CLD_DUMPED)

    def wait(self, look: Look = lambda: None) -> Trouble | None:
        """It waits for the end and passes signals on meanwhile; it returns early with what `look` finds wrong."""
        while not self.ended:
            if trouble := look():
                return trouble
            if self.insisted:
                self.kill()
            if self.undelivered is None and self.pending:
                self.undelivered = self.pending.popleft()
            if self.undelivered is not None and self.deliver(self.undelivered):
                self.undelivered = None
            time.sleep(POLL_SECONDS)
        return None

    def await_end(self, seconds: float) -> None:
        """It waits for the end, but no longer than so many seconds; SIGINT cuts that short."""
        deadline = time.monotonic() + seconds
        while not self.ended and time.monotonic() < deadline and signal.SIGINT not in self.pending:
            time.sleep(POLL_SECONDS)

    def deliver(self, signal_number: int) -> bool:
        """It passes one signal on, and returns false while it has not reached all ranks.

        All but SIGUSR1, and SIGUSR2, which asks ranks for their stacks, ask them to stop as SIGTERM does: they do not
        learn themselves that their terminal is gone. A host that does not answer is told, and asked again.
        """
        if signal_number == REQUEST:
            if self.options.launcher != "slurm" or not in_queue(
                self.process.pid
            ):  # srun would leave the queue
                self.signal_ranks(REQUEST)
            return True
        asked = signal.SIGUSR1 if signal_number == signal.SIGUSR1 else signal.SIGTERM
        by_hand = signal_number in (signal.SIGINT, signal.SIGQUIT)
        if by_hand and not self.tried and self.options.slots is not None:
            note("asking the ranks on all hosts to stop; Ctrl-C again ends the run at once")
        self.tried = True
        some, complete, problem = self.signal_ranks(asked)
        if problem != self.known_problem:
            self.known_problem = problem
            if problem:
                note(f"not all ranks can be asked to stop: {problem}; Ctrl-C again ends the run at once")
        if some and not self.stopping and by_hand:
            note("stopping after this step; Ctrl-C again ends the run at once")
        self.stopping = self.stopping or some
        return complete

    def signal_ranks(self, signal_number: signal.Signals) -> tuple[bool, bool, str]:
        """It signals every rank once; it tells whether some could be reached, or all, and which hosts do not answer."""
        if self.options.slots is not None and not self.options.by_scheduler:
            words = [str(self.mark), signal_number.name]
            answers = on_hosts(self.options, "launch.ranks", words, SIGNAL_SECONDS, lambda: self.insisted)
            some, problem = 0 in answers.codes.values(), answers.problem
            return some, not problem, problem if answers.silent and not self.insisted else ""
        if self.options.by_scheduler:
            # srun and mpirun pass SIGUSR1 and SIGUSR2 on to all ranks, but take SIGTERM as an order to end them.
            orders = {signal.SIGKILL: signal.SIGTERM, REQUEST: REQUEST}
            order = orders.get(signal_number, signal.SIGUSR1)
            reached = send([psutil.Process(self.process.pid)], order) > 0
        else:
            reached = send(find_ranks(self.mark), signal_number) > 0
        return reached, reached, ""

    def kill(self) -> None:
        """It ends ranks and launcher at once; those of other hosts `finish` ends, whether they answer or not."""
        self.killed = self.stopping = True
        self.undelivered = None
        self.pending.clear()
        if self.options.slots is None or self.options.by_scheduler:
            self.signal_ranks(signal.SIGKILL)
        else:
            note("ending the run at once on all hosts; Ctrl-C again does not wait for their answers")
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
            if not self.ended:
                return Remains(0, f"{self.command.argv[0]} does not end")
            return self.left_by_mpirun(grace) if self.options.launcher == "openmpi" else Remains(0)
        if self.options.slots is not None:
            return Remains(0, self.reap_hosts(grace))
        return self.reap_here(grace)

    def left_by_mpirun(self, grace: float) -> Remains:
        """It ends ranks that `mpirun` has left because it was killed: it ends them on all hosts otherwise."""
        here = self.reap_here(grace)
        across = self.options.slots is not None and self.was_killed and shutil.which("pdsh")
        if across and (problem := self.reap_hosts(grace)):
            note(
                f"ranks may be left on other hosts: {problem}"
            )  # mpirun has reached them in a way of its own
        return here

    def reap_here(self, grace: float) -> Remains:
        """It ends what is left of ranks on this machine."""
        found, left = reap(self.mark, grace, self.run_folder, lambda: signal.SIGINT in self.pending)
        return Remains(found, f"{left} processes do not end" if left else "")

    def reap_hosts(self, grace: float) -> str:
        """It ends what is left of ranks on all hosts, and returns what is wrong; SIGINT cuts the grace short, another
        one the wait for answers."""
        while True:
            before = self.pending.count(signal.SIGINT)
            interrupted = partial(self.interrupted, before)
            words = [str(self.mark), str(0.0 if before else grace), str(self.run_folder)]
            seconds = HURRIED_SECONDS if self.killed else grace + REAP_SECONDS
            answers = on_hosts(self.options, "launch.reap", words, seconds, interrupted)
            if before or self.killed or not interrupted():
                return answers.problem

    def interrupted(self, before: int) -> bool:
        """It tells whether SIGINT has come since it had come so many times before."""
        return self.pending.count(signal.SIGINT) > before


def run(command: Command, options: LaunchOptions, run_folder: Path) -> Ending:
    """It starts the command and stays until that has ended; ranks that outlive their launcher are ended."""
    known = len(records(run_folder))
    with forwarding() as pending:
        launch = Launch.start(command, options, run_folder, pending)
        launch.wait()
        remains = launch.finish(ORPHAN_SECONDS)
    if remains.problem:
        note(f"something may be left of the ranks: {remains.problem}")
    return ending_of(launch, remains, known)


def ending_of(launch: Launch, remains: Remains, known: int) -> Ending:
    """It says how a launch has ended; before it, the ledger had so many records."""
    code = launch.process.returncode
    unbegun = launch.options.launcher == "slurm" and code == REVOKED
    return Ending(
        code,
        launch.asked_to_stop,
        remains.orphans,
        unbegun and len(records(launch.run_folder)) == known,
    )


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
    """It collects the signals that are to be passed on; those that are ignored are not, such as SIGHUP under nohup."""
    pending: deque[int] = deque()

    def collect(signal_number: int, frame: FrameType | None) -> None:
        pending.append(signal_number)

    ignored = [number for number in IF_HEEDED if signal.getsignal(number) is signal.SIG_IGN]
    heeded = [REQUEST, *(number for number in REQUESTS if number not in ignored)]
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
