"""`surefoot train --supervise`: keeps a run going until its ledger says that it is done.

    launch --ends, or a rank hangs or is lost--> end all that is left --> silence on all hosts --> launch again

What is wrong with configuration, data or checkpoints, divergence, and the wish to stop are not answered by another
launch; nor is a run whose checkpoints do not get any further.
"""

import json
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.command import Command, LaunchOptions
from launch.hang_detector import LOST_SECONDS, Trouble, Watch
from launch.outcome import Ending, Outcome, judge, last_step
from launch.process import ORPHAN_SECONDS, Launch, Remains, forwarding, note
from launch.run_progress import is_done, records, sealed_step
from pretrain.errors import (
    DATA_EXIT_CODE,
    CheckpointError,
    ConfigurationError,
    PeerLost,
    Preempted,
    TrainingDiverged,
)
from pretrain.run_folder import METRICS, SUPERVISOR_EVENTS, SUPERVISOR_LOCK
from pretrain.runtime.heartbeat import clear_beats
from pretrain.runtime.run_lock import RunLock

FINAL = frozenset(
    {
        ConfigurationError.exit_code,
        DATA_EXIT_CODE,
        CheckpointError.exit_code,
        TrainingDiverged.exit_code,
        Preempted.exit_code,
    }
)
"""Exit codes that another launch would not change, or that ask for none."""
POLL_SECONDS = 0.2
RETRY_SECONDS = 5.0
"""Between two questions whether all hosts are silent."""


@dataclass(frozen=True)
class Policy:
    """When to end a launch, when to launch again, and when to give up. Times in seconds."""

    hang_after: float
    """A rank that takes longer for a step hangs."""
    relaunches: int = 3
    """Launches again while no checkpoint gets further; one more is not tried."""
    wait_for_hosts: float = 3600.0
    """For hosts that do not answer to come back, and for another machine's lock of the run folder to end."""
    first_delay: float = 5.0
    """Before the first relaunch; doubles with each that brings no progress."""
    longest_delay: float = 600.0
    grace: float = 30.0
    """For ranks to end by themselves once one of them hangs or is lost."""
    lost_after: float = LOST_SECONDS
    """For the launcher to end by itself once a rank has ended."""


class Supervisor:
    """One run, from launch to launch."""

    def __init__(
        self,
        run_folder: Path,
        steps: int,
        options: LaunchOptions,
        build: Callable[[], Command],
        policy: Policy,
    ) -> None:
        """`build` makes the command of each launch anew, with a port that is free."""
        self._folder, self._steps = run_folder, steps
        self._options, self._build, self._policy = options, build, policy
        self._pending: deque[int] = deque()
        self._launches = 0
        self._stopping = False
        """A signal has asked for the end."""

    def run(self) -> int:
        """Supervise until the end; returns the exit code.

        Raises ConfigurationError if the run folder is in use, and CheckpointError if the ledger was tampered with.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self._folder}: cannot be made: {error.strerror}") from error
        with RunLock(self._folder, SUPERVISOR_LOCK), forwarding() as self._pending:
            RunLock(self._folder).release()  # a run without a supervisor would have it
            return self._keep_going()

    def _keep_going(self) -> int:
        failures, furthest = 0, sealed_step(self._folder)
        while True:
            launch, outcome = self._launch()
            if self._is_final(outcome):
                return self._leave("ended" if outcome.exit_code else "done", outcome)
            reached = sealed_step(self._folder)
            failures = 1 if reached > furthest else failures + 1
            furthest = max(furthest, reached)
            if failures > self._policy.relaunches:
                reason = f"{failures} launches in a row sealed no checkpoint behind step {furthest}"
                return self._leave("gave up", outcome, reason)
            problem = self._await_silence(launch)
            if self._pending or (not problem and self._pause(failures)):
                return self._leave("stopped", Outcome(Preempted.exit_code, "stopped between two launches"))
            if problem:
                return self._leave("gave up", outcome, problem)

    def _is_final(self, outcome: Outcome) -> bool:
        return outcome.exit_code in FINAL or outcome.exit_code == 0 or self._stopping

    def _launch(self) -> tuple[Launch, Outcome]:
        """One launch, from its start until nothing of it is left on the hosts that answer."""
        clear_beats(self._folder)
        known = len(records(self._folder))
        watch = Watch(self._folder, self._policy.hang_after, lost_after=self._policy.lost_after)
        launch = Launch.start(self._build(), self._options, self._folder, self._pending)
        self._launches += 1
        facts = {"pid": launch.process.pid, "port": launch.command.master_port}
        self._tell("started", f"launch {self._launches}, from step {sealed_step(self._folder)}", **facts)
        trouble = launch.wait(watch.look)
        if trouble:
            self._tell(trouble.kind, trouble.reason)
        remains = launch.finish(self._policy.grace if trouble else ORPHAN_SECONDS)
        self._stopping = self._stopping or launch.stopping
        return launch, self._outcome(launch, trouble, remains, known)

    def _outcome(self, launch: Launch, trouble: Trouble | None, remains: Remains, known: int) -> Outcome:
        """What became of a launch; the ledger alone says that the run is done."""
        if is_done(self._folder, known):
            return Outcome(0, "the ledger says that the run is complete")
        if trouble:
            return Outcome(PeerLost.exit_code, trouble.reason)
        ending = Ending(launch.process.returncode, launch.stopping, remains.orphans)
        outcome = judge(ending, last_step(self._folder / METRICS), self._steps)
        if outcome.exit_code == 0:
            outcome = Outcome(PeerLost.exit_code, "the launcher ended well, but the ledger has no `done`")
        if outcome.exit_code == PeerLost.exit_code:
            self._tell("lost", outcome.reason or "a rank has lost another one")
        return outcome

    def _await_silence(self, launch: Launch) -> str:
        """Wait until nothing of a launch runs on any host and nobody has the run folder; returns what stays wrong."""
        deadline, told = time.monotonic() + self._policy.wait_for_hosts, ""
        while problem := launch.silence(self._policy.grace).problem or self._lock_problem():
            if problem != told:
                self._tell("waiting", problem)
                told = problem
            if time.monotonic() > deadline or self._sleep(RETRY_SECONDS):
                return problem
        return ""

    def _lock_problem(self) -> str:
        try:
            RunLock(self._folder).release()
        except ConfigurationError as error:
            return str(error)
        return ""

    def _pause(self, failures: int) -> bool:
        """Wait before the next launch; true if a signal asks for the end."""
        delay = min(self._policy.first_delay * 2 ** (failures - 1), self._policy.longest_delay)
        self._tell("relaunch", f"launch {self._launches + 1} in {delay:.0f} s", failures=failures)
        return self._sleep(delay)

    def _sleep(self, seconds: float) -> bool:
        """True as soon as a signal asks for the end."""
        deadline = time.monotonic() + seconds
        while not self._pending and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return bool(self._pending)

    def _leave(self, kind: str, outcome: Outcome, reason: str = "") -> int:
        text = "; ".join(filter(None, (reason, outcome.reason))) or f"exit code {outcome.exit_code}"
        self._tell(kind, text, exit_code=outcome.exit_code)
        return outcome.exit_code

    def _tell(self, kind: str, reason: str, **facts: Any) -> None:
        """Print an event, and note it in the run folder if that has room."""
        note(f"supervisor: {kind}: {reason}")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "launch": self._launches, "kind": kind, "reason": reason, **facts})
        with suppress(OSError), (self._folder / SUPERVISOR_EVENTS).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
