"""This module is the entry of the `surefoot` command: it holds what must be right before all else is imported."""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType

from launch.children import OwnPackages

INTERRUPTED = 128 + signal.SIGINT
PREEMPTED = 75
"""As `pretrain.errors.Preempted` has it, which is not imported yet when it is needed."""
STARTING = ("train", "rehearse")
"""These commands start ranks; schedulers may want them gone before they have."""
ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)


def main(arguments: Sequence[str] | None = None) -> int:
    """It runs the command line and returns the exit code.

    The commands are imported by name in here: Ctrl-C ends the process without a traceback meanwhile, too, and our
    packages are found before others that are called alike.
    """
    if OwnPackages not in sys.meta_path:
        sys.meta_path.insert(0, OwnPackages)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with ending_on_signals(ENDING if words[:1] and words[0] in STARTING else ()):
            return run(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return int(import_module("data_pipeline.program").unwritten(error, "surefoot"))


def run(words: Sequence[str]) -> int:
    """It runs the command line, and has all that it prints written."""
    try:
        return int(import_module("launch.subcommands").run(words))
    finally:
        if sys.stdout is not None:  # as it is where it was closed, until that is mended
            sys.stdout.flush()


@contextmanager
def ending_on_signals(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Within it, these signals end the process at once with 75, but for those that are ignored: nothing has begun,
    until `launch.process` passes them on."""
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, _end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(PREEMPTED)


if __name__ == "__main__":
    # For `python -m launch.cli`, which would do nothing and end with 0.
    import_module("pretrain.runtime.search_path").leave_out_current_folder()
    sys.exit(main())
