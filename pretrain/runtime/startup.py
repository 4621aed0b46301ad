"""A rank sets this right before it imports what takes seconds: its streams, and what signals do meanwhile."""

import os
import signal
import sys
from types import FrameType

from data_pipeline.shown import show_anything
from pretrain.errors import ConfigurationError, Preempted
from pretrain.runtime.stacks import REQUEST

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def begin() -> None:
    """It prepares this process for the imports of a rank."""
    open_standard_streams()
    check_current_folder()
    end_on_signals()


def open_standard_streams() -> None:
    """It opens the null device in place of standard streams that were closed (`>&-`), and has all take any text.

    The first files to be opened would take their numbers otherwise, and get what libraries print.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest number that is free is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    show_anything()


def check_current_folder() -> None:
    """It ends the process with code 2 where the current directory was removed: relative paths mean nothing there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.stderr.write("surefoot: the current directory was removed; change to one that is there\n")
        sys.exit(ConfigurationError.exit_code)


def end_on_signals() -> None:
    """It has signals that ask for the end do so at once; the exit code says that the run can be resumed."""
    signal.signal(REQUEST, signal.SIG_IGN)  # there are no stacks to tell of yet, and it would end a rank
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(Preempted.exit_code)
