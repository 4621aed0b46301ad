"""The command lines of all rooms that prepare data have this in common: exit codes and types of arguments."""

import argparse
import math
import sys
from collections.abc import Callable, Iterable

from data_pipeline.errors import DataError
from data_pipeline.preparing.source_files import LeftOut
from data_pipeline.preparing.workspace import TargetExists
from data_pipeline.shortage import shortage
from data_pipeline.shown import masked, show_anything, shown, shown_lines

EXIT_COMMAND_LINE = 2
EXIT_DATA = 3
EXIT_INTERRUPTED = 130

MOST_PROCESSES = 4096

LISTED = 5
"""Things that are named of those that were left out for one reason, or counted twice."""


def exit_code(prepare: Callable[[], None]) -> int:
    """It prepares, tells what went wrong if anything did, and returns the exit code."""
    show_anything()
    try:
        prepare()
    except TargetExists as error:
        return _fail(error, EXIT_COMMAND_LINE)
    except DataError as error:
        return _fail(error, EXIT_DATA)
    except BrokenPipeError:
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        if lacking := shortage(error):
            return _fail(lacking, EXIT_DATA)
        if not isinstance(error, OSError):
            raise
        # all else has become one of the above: standard output goes into a full disk
        return _fail(f"{error.filename or 'standard output'}: {error.strerror}", EXIT_DATA)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", EXIT_INTERRUPTED)
    return 0


def report_left_out(entries: Iterable[LeftOut]) -> None:
    """It names on standard error what was left out, by reason, and counts what is too much to be named."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        names.setdefault(entry.reason, []).append(shown(entry.name))
    for reason, found in names.items():
        more = f" and {len(found) - LISTED:,} more" if len(found) > LISTED else ""
        print(f"left out: {', '.join(found[:LISTED])}{more}: {reason}", file=sys.stderr)


def positive(text: str) -> int:
    """It reads a whole number above 0."""
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def processes(text: str) -> int:
    """It reads a number of processes."""
    value = positive(text)
    if value > MOST_PROCESSES:
        raise argparse.ArgumentTypeError(f"{text} is above {MOST_PROCESSES}")
    return value


def share(text: str) -> float:
    """It reads a number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def at_least(least: float) -> Callable[[str], float]:
    """It returns what reads a finite number that is not below `least`."""

    def number(text: str) -> float:
        value = float(text)
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number of {least:g} or more")
        return value

    return number


def number_in(least: float, most: float) -> Callable[[str], float]:
    """It returns what reads a number from `least` to `most`."""

    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least:g} to {most:g}")
        return value

    return number


def _fail(message: object, code: int) -> int:
    print(f"surefoot prepare: error: {shown_lines(masked(message))}", file=sys.stderr)
    return code
