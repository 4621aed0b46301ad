"""Watches the heartbeats of a launch: says when a rank hangs, or has ended and its launcher does not notice."""

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pretrain.runtime.heartbeat import Beat, Phase, is_alive, read_beats

SLOW_PHASES = 4.0
"""Starting, saving and validating may take so many times longer than a step without a beat."""
LOST_SECONDS = 60.0
"""Time that the launcher has to end by itself when a rank has ended; it gives each of its other ranks 30."""
LOOKS = 20
"""Looks at the heartbeats within the time that a rank may be silent."""


@dataclass(frozen=True)
class Trouble:
    """Why a launch must be ended."""

    kind: str
    """`hung` or `lost`."""
    reason: str


class Watch:
    """One launch as its heartbeats show it.

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
    ) -> None:
        """`hang_after`: seconds that a rank may take for a step."""
        self._folder, self._clock = run_folder, clock
        self._hang_after, self._lost_after = hang_after, lost_after
        self._host = socket.gethostname()
        self._started = self._next_look = clock()
        self._beats: dict[int, Beat] = {}
        self._since: dict[int, float] = {}
        """When the last beat of a rank was first seen, by rank."""
        self._ended: dict[int, float] = {}
        """When a rank was first seen to have ended, by rank."""

    def look(self) -> Trouble | None:
        """What is wrong with the launch, if anything is; reads the heartbeats when that is due again."""
        now = self._clock()
        if now < self._next_look:
            return None
        self._next_look = now + min(max(self._hang_after / LOOKS, 0.2), 10.0)
        self._note(read_beats(self._folder), now)
        return next(self._troubles(now), None)

    def _note(self, beats: dict[int, Beat], now: float) -> None:
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
        return self._hang_after * (1.0 if phase is Phase.STEP else SLOW_PHASES)


def describe(beat: Beat) -> str:
    """Which rank, where, and what it was doing."""
    return f"rank {beat.rank} (process {beat.pid} on {beat.host}, {beat.phase} at step {beat.step})"
