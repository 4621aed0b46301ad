"""Every rank gives a supervisor signs of life, in a small file in the run folder, `heartbeats/rank_00000.json`."""

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, TypeAdapter

from data_pipeline.files import open_regular, replace_file
from data_pipeline.parsing import parse_json
from pretrain.run_folder import HEARTBEATS, rank_file
from pretrain.runtime.run_folder_guard import folder_problem

LARGEST_BYTES = 2**16
"""A beat has some hundred."""
SECONDS_BETWEEN = 1.0
"""Beats of one phase that come faster are not written."""


class Phase(StrEnum):
    """It says what a rank is doing; all phases but STEP may take far longer than a step."""

    STARTING = "starting"
    STEP = "step"
    VALIDATING = "validating"
    SAVING = "saving"
    RESTORING = "restoring"
    """It goes back to an earlier checkpoint."""


@dataclass(frozen=True)
class Beat:
    """A beat is the last sign of life of a rank, and says which process it is."""

    rank: Annotated[int, Field(ge=0, lt=2**31)]
    host: str
    pid: Annotated[int, Field(gt=1, lt=2**31)]
    started: int
    """When the process started, in clock ticks since its host did; with `pid` it names one process for good."""
    port: int
    """MASTER_PORT, which tells launches of the same run apart."""
    step: int
    attempt: int
    phase: Phase
    time: float
    """Wall clock of the host, in seconds since 1970: for people, hosts' clocks may differ."""
    touched: int = 0
    """When the file was last changed, in ns; filled in by the reader."""


_BEAT = TypeAdapter(Beat)


class Heartbeat:
    """It writes the beats of this rank, and removes its file when it is closed, so one that is left belongs to a
    process that was ended.

    A beat never raises: a full disk must not end a run. It then only touches the file, which needs no room.
    """

    def __init__(
        self, run_folder: Path, rank: int, port: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = beat_file(run_folder, rank)
        self._who = (rank, socket.gethostname(), os.getpid(), start_of(os.getpid()) or 0, port)
        self._clock = clock
        self._written: tuple[Phase, float] | None = None
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._home = _identity(run_folder)
        self._run_folder = run_folder
        self.beat(0, Phase.STARTING)

    def beat(self, step: int, phase: Phase, attempt: int = 0) -> None:
        """Say that this rank is alive in `phase` of optimizer step `step`. That is cheap: a new phase is written at
        once, else one beat a second, without waiting for the disk."""
        now = self._clock()
        if self._written and self._written[0] is phase and now < self._written[1] + SECONDS_BETWEEN:
            return
        self._written = phase, now
        try:
            self._write(Beat(*self._who, step=step, attempt=attempt, phase=phase, time=time.time()))
        except OSError:
            with suppress(OSError):
                os.utime(self._path)

    def close(self) -> None:
        with suppress(OSError):
            if self._is_home():
                self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, beat: Beat) -> None:
        fields = asdict(beat)
        del fields["touched"]
        if self._is_home():
            self._path.parent.mkdir(exist_ok=True)  # somebody may have removed it
            replace_file(self._path, json.dumps(fields), durable=False)

    def _is_home(self) -> bool:
        """It tells whether the run folder is the one that the run began in, as another one has beats of its own, and
        that of the beats is in it."""
        return _identity(self._run_folder) == self._home and not folder_problem(self._path.parent)


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def beat_file(run_folder: Path, rank: int) -> Path:
    return run_folder / HEARTBEATS / rank_file(rank, "json")


def read_beats(run_folder: Path) -> dict[int, Beat]:
    """It returns the last beat of every rank that has a file, by rank; what cannot be read is left out."""
    found = (read_beat(path) for path in sorted((run_folder / HEARTBEATS).glob("rank_*.json")))
    return {beat.rank: beat for beat in found if beat}


def read_beat(path: Path) -> Beat | None:
    """It returns the beat in a file; none where it is gone, is something else, or was written by somebody else: who
    wrote it has named a process to be ended."""
    try:
        with open_regular(path) as file:
            status, text = os.fstat(file.fileno()), file.read(LARGEST_BYTES)
        beat = _BEAT.validate_json(json.dumps(parse_json(text)), strict=True)
    except (OSError, ValueError):
        return None
    if status.st_uid != os.getuid() or path != beat_file(path.parents[1], beat.rank):
        return None
    return replace(beat, touched=status.st_mtime_ns)


def clear_beats(run_folder: Path) -> None:
    """Remove what ended ranks have left; this must only be done while no rank of the run lives."""
    for path in (run_folder / HEARTBEATS).glob("*rank_*.json*"):
        with suppress(OSError):
            path.unlink()


def start_of(pid: int) -> int | None:
    """It returns when a process started, in clock ticks since boot; none where it is gone or only waits to be
    reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else int(fields[19])


def is_alive(beat: Beat) -> bool:
    """It says whether the process of a beat still runs; only its own host can tell."""
    return start_of(beat.pid) == beat.started
