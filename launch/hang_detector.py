"""The hang detector reads the heartbeats of a launch.

It says when a rank hangs, and when one has ended and its launcher does not notice.
"""

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.runtime.heartbeat import Beat, Phase, is_alive, read_beats

SLOW_PHASES = 4.0
"""Starting, saving and validating may take so many times longer than a step without a beat."""
LOST_SECONDS = 60.0
"""The launcher has so long to end by itself when a rank has ended; it gives each of its other ranks 30."""
LOOKS = 20
"""The heartbeats are read so many times within the time that a rank may be silent."""


@dataclass(frozen=True)
class Trouble:
    """Trouble is why a launch must be ended."""

    kind: str
    """The kind is `hung` or `lost`."""
    reason: str


class HangDetector:
    """The detector sees one launch through its heartbeats.

    Time is this machine's, from one look to the next: the clocks of hosts may differ and jump. Ranks of other hosts
    are seen where the run folder is shared; where it is not, only those of this machine are.
    """

    def __init__(
        self,
        run_folder: Path,
        hang_after: float,
        *,
        lost_after: float = LOST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        queued: Callable[[], bool] = lambda: False,
    ) -> None:
        """A rank may take `hang_after` seconds for a step; the launch begins once it is `queued` no more."""
        self._folder, self._clock = run_folder, clock
        self._hang_after, self._lost_after, self._queued = hang_after, lost_after, queued
        self._host = socket.gethostname()
        self._started = self._next_look = clock()
        self._beats: dict[int, Beat] = {}
        self._since: dict[int, float] = {}
        """It holds, by rank, when the last beat was first seen."""
        self._ended: dict[int, float] = {}
        """It holds, by rank, when the rank was first seen to have ended."""

    def look(self) -> Trouble | None:
        """It returns what is wrong with the launch, if anything is; it reads the heartbeats when that is due again."""
        now = self._clock()
        if now < self._next_look:
            return None
        self._next_look = now + min(max(self._hang_after / LOOKS, 0.2), 10.0)
        self._note(read_beats(self._folder), now)
        if not self._beats and self._queued():
            self._started = now
        return next(self._troubles(now), None)

    def _note(self, beats: dict[int, Beat], now: float) -> None:
        """It notes which beats are new, and which ranks have ended."""
        for rank, beat in beats.items():
            if beat != self._beats.get(rank):
                self._beats[rank], self._since[rank] = beat, now
        for rank, beat in self._beats.items():
            gone = rank not in beats or (beat.host == self._host and not is_alive(beat))
            if gone:
                self._ended.setdefault(rank, now)
            else:
                self._ended.pop(rank, None)

    def _troubles(self, now: float) -> Iterator[Trouble]:
        """It yields all that is wrong, what is lost before what hangs."""
        for rank, since in self._ended.items():
            if now - since > self._lost_after:
                beat = self._beats[rank]
                yield Trouble("lost", f"{describe(beat)} has ended, and the launcher has not noticed")
        for rank, beat in self._beats.items():
            silent = now - self._since[rank]
            if rank not in self._ended and silent > self._limit(beat.phase):
                yield Trouble("hung", f"{describe(beat)} gave no sign of life for {silent:.0f} s")
        if not self._beats and now - self._started > self._limit(Phase.STARTING):
            yield Trouble("hung", f"no rank gave a sign of life within {now - self._started:.0f} s")

    def _limit(self, phase: Phase) -> float:
        """It returns how long a rank may be silent in this phase."""
        return self._hang_after * (1.0 if phase is Phase.STEP else SLOW_PHASES)


def describe(beat: Beat) -> str:
    """It says which rank this is, where it runs, and what it was doing."""
    when = "in" if beat.phase is Phase.STEP else f"{beat.phase} at"
    return f"rank {beat.rank} (process {beat.pid} on {beat.host}, {when} step {beat.step})"
