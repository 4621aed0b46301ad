"""`python -m data_pipeline KIND ...`, which `surefoot prepare` runs, prepares raw files for training.

A kind of data can be prepared when its room has a `command.py`: a first docstring line for the list of kinds, and
`main(arguments)`, which returns the exit code. No room is imported that was not asked for.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from data_pipeline.program import command_parser, commands_in, run_program

COMMAND = "command"
PROGRAM = "surefoot prepare"
ROOM = Path(__file__).parent


def main(arguments: Sequence[str]) -> int:
    """It runs the command line of the room that the first argument names, and returns the exit code."""
    parser = command_parser(
        PROGRAM,
        "Turn raw files into shards that a run reads.",
        "exit codes: 0 done, 2 command line, 3 data, 130 interrupted",
        rooms(),
        "KIND",
    )
    kind = parser.parse_args(arguments[:1]).command
    return int(import_module(f"data_pipeline.{kind}.{COMMAND}").main(arguments[1:]))


def rooms(package: Path = ROOM) -> dict[str, str]:
    """It returns the kinds of data that can be prepared, each with a line about it."""
    return commands_in(package, f"{COMMAND}.py")


if __name__ == "__main__":  # worker processes import this file again and need none of it
    if ROOM.parent != Path.cwd():  # `python -m` looks there first: a `numpy.py` of the user's is none of ours
        sys.path[:] = [entry for entry in sys.path if Path(entry) != Path.cwd()]
    sys.exit(run_program(PROGRAM, lambda: main(sys.argv[1:])))
