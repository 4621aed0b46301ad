"""Requests to stop are noticed in a handler, and acted on at the next step boundary that all ranks agree on."""

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What schedulers send ahead of a preemption or the end of a job, and a terminal that goes away."""
STOPPING = b"surefoot: stopping after this step; Ctrl-C again ends the run at once\n"


class StopSignals:
    """While entered, stop signals are noted instead of ending the process."""

    def __init__(self, *, aloud: bool = False) -> None:
        """`aloud` has Ctrl-C answered on standard error."""
        self._aloud = aloud
        self._received: signal.Signals | None = None
        self._interrupted = False
        self._previous: dict[signal.Signals, object] = {}

    @property
    def received(self) -> signal.Signals | None:
        """It returns the first stop signal that has come, if any."""
        return self._received

    def __enter__(self) -> "StopSignals":
        heeded = [
            number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
        ]  # nohup
        self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def take_interrupts(self) -> None:
        """From here on SIGINT asks to stop, too, unless it is ignored; a second one raises KeyboardInterrupt."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        if self._aloud and self._received is None:
            with suppress(OSError):  # not by `print`, which the signal may have come into
                os.write(2, STOPPING)
        self._note(number, frame)
