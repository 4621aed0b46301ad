"""The course of a run on the console: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import rich.console
from rich.progress import BarColumn, Progress, TextColumn

from pretrain.config.run import JournalConfig

_RECENT_STEPS = 100
_LONGEST_SECONDS = 10**10
"""Three centuries: a run may have any number of steps, to be ended by hand."""


@dataclass(frozen=True)
class StepLine:
    """The console shows this of a step."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    remark: str = ""
    """Why the update was withheld; a step with a remark is always shown."""


class Console(Protocol):
    """A console shows steps and messages."""

    def step(self, line: StepLine) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


class TimeLeft:
    """It tells the time to the last step at the pace of recent steps, whatever lay between them included.

    A step that is taken again after a rollback is a step of its own.
    """

    def __init__(self, total_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total_steps = total_steps
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=_RECENT_STEPS)

    def after(self, step: int) -> str:
        """It returns `H:MM:SS`, or `-:--:--` after the first step."""
        self._recent.append(self._clock())
        taken = len(self._recent) - 1
        if not taken:
            return "-:--:--"
        pace = (self._recent[-1] - self._recent[0]) / taken
        return str(timedelta(seconds=min(round(pace * (self._total_steps - step)), _LONGEST_SECONDS)))


class PlainConsole:
    """It prints a line for the first step, the last, every so many, and each that is remarkable."""

    def __init__(self, total_steps: int, every_steps: int) -> None:
        self._total_steps = total_steps
        self._every_steps = every_steps
        self._started = False
        self._time_left = TimeLeft(total_steps)

    def step(self, line: StepLine) -> None:
        left = self._time_left.after(line.step)
        due = line.step % self._every_steps == 0 or line.step == self._total_steps
        if due or line.remark or not self._started:
            self.say(self._format(line, left))
        self._started = True

    def say(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        """Nothing is held."""

    def _format(self, line: StepLine, left: str) -> str:
        width = len(str(self._total_steps))
        text = (
            f"step {line.step:{width}}/{self._total_steps}  loss {line.loss:.4f}  "
            f"learning rate {line.learning_rate:.2e}  gradient norm {line.gradient_norm:.3f}  "
            f"{line.tokens_per_second:,.0f} tokens/s  {left} left"
        )
        return f"{text}  {line.remark}" if line.remark else text


class BarConsole:
    """It shows a progress bar; messages scroll by above it."""

    def __init__(self, total_steps: int, console: rich.console.Console) -> None:
        self._time_left = TimeLeft(total_steps)
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}"),
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("", total=total_steps, facts="")
        self._progress.start()

    def step(self, line: StepLine) -> None:
        left = self._time_left.after(line.step)
        facts = f"loss {line.loss:.4f}  {line.tokens_per_second:,.0f} tokens/s  {left} left"
        self._progress.update(self._task, completed=line.step, facts=facts)
        if line.remark:
            self.say(f"step {line.step}: {line.remark}")

    def say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class PatientConsole:
    """It writes to another console as long as that can be written to: a pipe that is closed, a terminal that has gone
    and a full disk are no faults of the run."""

    def __init__(self, console: Console) -> None:
        self._console: Console = console

    def step(self, line: StepLine) -> None:
        with self._fallen_silent():
            self._console.step(line)

    def say(self, text: str) -> None:
        with self._fallen_silent():
            self._console.say(text)

    def close(self) -> None:
        with self._fallen_silent():
            self._console.close()

    @contextmanager
    def _fallen_silent(self) -> Iterator[None]:
        """From the first failure on nothing is shown any more."""
        try:
            yield
        except OSError:
            self._console = NoConsole()


class NoConsole:
    """It shows nothing."""

    def step(self, line: StepLine) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def open_console(config: JournalConfig, total_steps: int, *, attended: bool = True) -> Console:
    """It opens the console that the configuration asks for, for as long as it can be written to."""
    return PatientConsole(chosen_console(config, total_steps, attended=attended))


def chosen_console(config: JournalConfig, total_steps: int, *, attended: bool = True) -> Console:
    """It returns the console that the configuration asks for; `auto` has a bar on a terminal that is attended."""
    terminal = rich.console.Console(force_terminal=True if config.console == "bar" else None)
    if config.console == "none":
        return NoConsole()
    if config.console == "bar" or (config.console == "auto" and attended and terminal.is_interactive):
        return BarConsole(total_steps, terminal)
    return PlainConsole(total_steps, config.console_every_steps)
