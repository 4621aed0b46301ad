"""Requests to stop are noticed in a handler, and acted on at the next step boundary that all ranks agree on."""

import signal
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What schedulers send ahead of a preemption or the end of a job, and a terminal that goes away."""


class StopSignals:
    """While entered, stop signals are noted instead of ending the process."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number)
