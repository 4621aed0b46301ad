"""Where a step goes: the time of each of its parts, on the host and on the device, from the events of a profiler."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch._C._autograd import DeviceType

from pretrain.runtime.ranges import RANGE, Part

REST = "the rest"


@dataclass(frozen=True)
class Piece:
    """It is a stretch of time that belongs to a part; times are in microseconds."""

    start: float
    end: float
    part: str


@dataclass(frozen=True)
class StepTable:
    """It holds the time of each part of some steps, in seconds a step."""

    steps: int
    host: dict[str, float]
    """What the host was at, each moment counted once, for the innermost part that it lies in."""
    device: dict[str, float]
    """How long what was launched meanwhile kept the device busy; empty without one."""

    def lines(self) -> Iterator[str]:
        """It yields a heading, and a line for each part."""
        total, busy = sum(self.host.values()), sum(self.device.values())
        heads = f"a step took {1e3 * total:.2f} ms under the profiler"
        yield f"{heads}, the device was busy for {1e3 * busy:.2f} ms" if self.device else heads
        for part in (*get_args(Part), REST):
            seconds, of_device = self.host.get(part, 0.0), self.device.get(part, 0.0)
            if seconds or of_device:
                line = f"{part:10} {1e3 * seconds:10.2f} ms {seconds / total:6.1%}"
                yield f"{line} {1e3 * of_device:10.2f} ms on the device" if self.device else line


def step_table(events: Iterable[Any]) -> StepTable:
    """It makes the table of what `torch.profiler.profile.events` returns."""
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    ranges = [
        Piece(event.time_range.start, event.time_range.end, event.name.removeprefix(RANGE))
        for event in on_host
        if event.name.startswith(RANGE)
    ]
    steps = [piece for piece in ranges if piece.part == "step"]
    count, pieces = max(len(steps), 1), cut(ranges)
    starts = [piece.start for piece in pieces]
    host: defaultdict[str, float] = defaultdict(float)
    for piece in pieces:
        host[piece.part] += (piece.end - piece.start) / count / 1e6
    device: defaultdict[str, float] = defaultdict(float)
    for event in on_host:
        # Backward passes launch from threads of their own: when, not where, tells which part it was.
        index = bisect_right(starts, event.time_range.start) - 1
        kernels = [kernel.duration for kernel in event.kernels if not is_shadow(kernel, event)]
        if kernels and index >= 0 and event.time_range.start < pieces[index].end:
            device[pieces[index].part] += sum(kernels) / count / 1e6
    return StepTable(len(steps), renamed(host), renamed(device))


def is_shadow(kernel: Any, event: Any) -> bool:
    """It tells whether a kernel is what a named range on the host casts on the device: the time of others."""
    return bool(event.is_user_annotation) and kernel.name == event.name


def renamed(seconds: Mapping[str, float]) -> dict[str, float]:
    """What lies in a step and in no other part of it is the rest."""
    return {REST if part == "step" else part: value for part, value in seconds.items()}


def cut(ranges: Sequence[Piece]) -> list[Piece]:
    """It cuts ranges that lie in one another into pieces in a row, each of the innermost part there."""
    pieces: list[Piece] = []
    open_ones: list[Piece] = []
    now = float("-inf")

    def reach(time: float) -> None:
        nonlocal now
        if open_ones and time > now:
            pieces.append(Piece(now, time, open_ones[-1].part))
        now = max(now, time)

    def close_until(time: float) -> None:
        while open_ones and open_ones[-1].end <= time:
            reach(open_ones[-1].end)
            open_ones.pop()

    for piece in sorted(ranges, key=lambda piece: (piece.start, -piece.end)):
        close_until(piece.start)
        reach(piece.start)
        open_ones.append(piece)
    close_until(float("inf"))
    return pieces
