"""`surefoot train --supervise` keeps a run going until its ledger says that it is done.

    launch --ends, or a rank hangs or is lost--> end all that is left --> silence on all hosts --> launch again

A launch that ends because of its configuration, data or checkpoints, because it diverged or because somebody stopped
it, is not followed by another one; nor is one whose checkpoints do not get any further.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.files import open_own
from launch.command import Command, LaunchOptions
from launch.hang_detector import LOST_SECONDS, HangDetector, Trouble
from launch.outcome import REQUESTS, Outcome, last_step, outcome_of
from launch.process import ORPHAN_SECONDS, Launch, Remains, believed, ending_of, forwarding, note
from launch.run_progress import is_done, records, sealed_step
from launch.slurm_queue import Queue
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
from pretrain.runtime.run_folder_guard import check_run_folder
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
"""Another launch would not change these exit codes, or they ask for none."""
POLL_SECONDS = 0.2
RETRY_SECONDS = 5.0
"""So much time lies between two questions whether all hosts are silent."""


@dataclass(frozen=True)
class Policy:
    """The policy says when to end a launch, when to launch again, and when to give up. Times are in seconds."""

    hang_after: float
    """A rank that takes longer for a step hangs."""
    relaunches: int = 3
    """So many launches may follow in which no checkpoint gets further; one more is not tried."""
    wait_for_hosts: float = 3600.0
    """Hosts that do not answer have so long to come back, and another machine's lock of the run folder to end."""
    first_delay: float = 5.0
    """This delay precedes the first relaunch; it doubles with each that brings no progress."""
    longest_delay: float = 600.0
    grace: float = 30.0
    """Ranks have so long to end by themselves once one of them hangs or is lost."""
    lost_after: float = LOST_SECONDS
    """The launcher has so long to end by itself once a rank has ended."""


class Supervisor:
    """The supervisor leads one run from launch to launch."""

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
        """It is true once a signal has asked for the end."""

    def run(self) -> int:
        """It supervises until the end and returns the exit code.

        It raises ConfigurationError if the run folder is in use, and CheckpointError if the ledger was tampered with.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"run.folder: {self._folder} cannot be made: {error.strerror}"
            ) from error
        check_run_folder(self._folder)
        with RunLock(self._folder, SUPERVISOR_LOCK), forwarding() as self._pending:
            RunLock(self._folder).release()  # a run without a supervisor would have it
            return self._keep_going()

    def _keep_going(self) -> int:
        """It launches until the run is done, is beyond help, or somebody stops it."""
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
            if self._asked_to_stop or (not problem and self._pause(failures)):
                return self._leave("stopped", Outcome(Preempted.exit_code, "stopped between two launches"))
            if problem:
                return self._leave("gave up", outcome, problem)

    def _is_final(self, outcome: Outcome) -> bool:
        """It tells whether no other launch is to follow."""
        return outcome.exit_code in FINAL or outcome.exit_code == 0 or self._stopping

    def _launch(self) -> tuple[Launch, Outcome]:
        """It makes one launch, from its start until nothing of it is left on the hosts that answer."""
        clear_beats(self._folder)
        known = len(records(self._folder))
        launch = Launch.start(self._build(), self._options, self._folder, self._pending)
        self._launches += 1
        facts = {"pid": launch.process.pid, "port": launch.command.master_port}
        self._record("started", f"launch {self._launches}, from step {sealed_step(self._folder)}", **facts)
        trouble = launch.wait(self._detector(launch).look)
        if trouble:
            self._record(trouble.kind, trouble.reason)
        remains = launch.finish(self._policy.grace if trouble else ORPHAN_SECONDS)
        self._stopping = self._stopping or launch.asked_to_stop
        if self._stopping and remains.problem:
            note(f"something may be left of the ranks: {remains.problem}")
        return launch, self._outcome(launch, trouble, remains, known)

    def _detector(self, launch: Launch) -> HangDetector:
        """It returns what looks for ranks that hang or are lost; in a queue none are."""
        queue = Queue(launch.process.pid, lambda reason: self._record("waiting", reason))
        return HangDetector(
            self._folder,
            self._policy.hang_after,
            lost_after=self._policy.lost_after,
            queued=queue.waits if self._options.launcher == "slurm" else lambda: False,
        )

    def _outcome(self, launch: Launch, trouble: Trouble | None, remains: Remains, known: int) -> Outcome:
        """It says what became of a launch; the ledger alone says that the run is done."""
        if is_done(self._folder, known):
            return Outcome(0, "the ledger says that the run is complete")
        if trouble:
            return Outcome(PeerLost.exit_code, trouble.reason)
        ending = ending_of(launch, remains, known)
        outcome = outcome_of(ending, last_step(self._folder / METRICS), self._steps)
        outcome = believed(outcome, ending, self._folder, known)
        if outcome.exit_code == PeerLost.exit_code:
            self._record("lost", outcome.reason or "a rank has lost another one, or has no memory left")
        return outcome

    def _await_silence(self, launch: Launch) -> str:
        """It waits until nothing of a launch runs on any host and the run folder is free; it returns what is wrong."""
        deadline, known = time.monotonic() + self._policy.wait_for_hosts, ""
        while problem := launch.silence(self._policy.grace).problem or self._lock_problem():
            if problem != known:
                self._record("waiting", problem)
                known = problem
            if time.monotonic() > deadline or self._sleep(RETRY_SECONDS):
                return problem
        return ""

    def _lock_problem(self) -> str:
        """It says who has the run folder; it returns nothing where that is free."""
        try:
            RunLock(self._folder).release()
        except ConfigurationError as error:
            return str(error)
        return ""

    def _pause(self, failures: int) -> bool:
        """It waits before the next launch, and returns true if a signal asks for the end."""
        delay = min(self._policy.first_delay * 2 ** (failures - 1), self._policy.longest_delay)
        self._record("relaunch", f"launch {self._launches + 1} in {delay:.0f} s", failures=failures)
        return self._sleep(delay)

    def _sleep(self, seconds: float) -> bool:
        """It waits so long, and returns true as soon as a signal asks for the end."""
        deadline = time.monotonic() + seconds
        while not self._asked_to_stop and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self._asked_to_stop

    @property
    def _asked_to_stop(self) -> bool:
        """It is true once a signal has come that asks for the end."""
        return not set(self._pending).isdisjoint(REQUESTS)

    def _leave(self, kind: str, outcome: Outcome, reason: str = "") -> int:
        """It records why supervision ends, and returns the exit code."""
        text = "; ".join(filter(None, (reason, outcome.reason))) or f"exit code {outcome.exit_code}"
        self._record(kind, text, exit_code=outcome.exit_code)
        return outcome.exit_code

    def _record(self, kind: str, reason: str, **facts: Any) -> None:
        """It prints an event, and notes it in the run folder if that has room."""
        note(f"supervisor: {kind}: {reason}")
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "launch": self._launches, "kind": kind, "reason": reason, **facts})
        with suppress(OSError), os.fdopen(open_own(self._folder / SUPERVISOR_EVENTS), "ab") as file:
            file.write(line.encode() + b"\n")
