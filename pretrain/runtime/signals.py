"""Requests to stop are noticed in a handler, and acted on at the next step boundary that all ranks agree on."""

import os
import signal
import socket
import threading
from contextlib import ExitStack, suppress
from types import FrameType, TracebackType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""What schedulers send ahead of a preemption or the end of a job, and a terminal that goes away."""
INTERRUPTED = 128 + signal.SIGINT
STOPPING = b"surefoot: stopping after this step; Ctrl-C again ends the run at once\n"


class StopSignals:
    """While entered, stop signals are noted instead of ending the process."""

    def __init__(self, *, aloud: bool = False) -> None:
        """`aloud` has Ctrl-C answered on standard error."""
        self._aloud = aloud
        self._received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._watching = ExitStack()

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
        """From here on SIGINT asks to stop, too, unless it is ignored; a second one ends the process with 130."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            return
        self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        receiver, sender = socket.socketpair()
        sender.setblocking(False)
        # Python calls handlers once the main thread is back from a library, which may wait for another rank for
        # minutes; this it writes at once.
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        self._watching.callback(sender.close)  # which ends the thread
        self._watching.callback(signal.set_wakeup_fd, -1)
        threading.Thread(target=self._watch, args=(receiver,), daemon=True, name="interrupts").start()

    def _watch(self, receiver: socket.socket) -> None:
        """It answers each SIGINT."""
        interrupts = 0
        with receiver:
            while numbers := receiver.recv(64):
                for _ in range(numbers.count(signal.SIGINT)):
                    interrupts += 1
                    if interrupts > 1:
                        os._exit(INTERRUPTED)
                    if self._aloud and self._received in (None, signal.SIGINT):
                        with suppress(OSError):
                            os.write(2, STOPPING)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watching.close()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or signal.Signals(number)
