"""`python -m data_pipeline KIND ...`, which `surefoot prepare` runs, prepares raw files for training.

A kind of data can be prepared when its room has a `command.py`: a first docstring line for the list of kinds, and
`main(arguments)`, which returns the exit code. No room is imported that was not asked for.
"""

import argparse
import ast
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from data_pipeline.shown import show_anything

COMMAND = "command"
INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str]) -> int:
    """It runs the command line of the room that the first argument names, and returns the exit code."""
    kind = _parser(rooms()).parse_args(arguments[:1]).kind
    return int(import_module(f"data_pipeline.{kind}.{COMMAND}").main(arguments[1:]))


def rooms(package: Path = Path(__file__).parent) -> dict[str, str]:
    """It returns the kinds of data that can be prepared, each with a line about it."""
    paths = sorted(package.glob(f"*/{COMMAND}.py"))
    return {path.parent.name: _first_line(path) for path in paths}


def _first_line(path: Path) -> str:
    """It reads the first line of a module's docstring without importing the module."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def _parser(kinds: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="surefoot prepare",
        description="Turn raw files into shards that a run reads.",
        epilog="exit codes: 0 done, 2 command line, 3 data, 130 interrupted",
    )
    commands = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, line in kinds.items():
        commands.add_parser(kind, help=line.replace("%", "%%"))
    return parser


def _run(arguments: Sequence[str]) -> int:
    """It runs the command line in a process of its own, which heeds signals before anything heavy is imported."""
    ours = Path(__file__).parents[1]
    if ours != Path.cwd():  # `python -m` looks there first: a `numpy.py` of the user's is none of ours
        sys.path[:] = [entry for entry in sys.path if Path(entry) != Path.cwd()]
    show_anything()
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
                signal.signal(number, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # `surefoot prepare` blocks it until here
        return main(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":  # worker processes import this file again and need none of it
    sys.exit(_run(sys.argv[1:]))
