"""A program of several commands: each has a folder, is found by its file, and is imported only when it is asked for.

`surefoot` becomes such a program where a command imports what takes seconds: `python -m data_pipeline` prepares data,
`python -m pretrain.commands` uses models. It is imported before all else, so it imports nothing heavy.
"""

import argparse
import ast
import keyword
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from data_pipeline.shown import CommandLine, show_anything

INTERRUPTED = 128 + signal.SIGINT
UNWRITTEN = 1
"""The exit code where there is no room for what a program says."""


def commands_in(package: Path, file: str) -> dict[str, str]:
    """It returns the commands of a package by name, each with a line about it: folders that hold `file`, and the first
    line of its docstring, read without importing it. Behind a name that Python keeps for itself stands an underscore:
    `import_` is the command `import`."""
    paths = sorted(package.glob(f"*/{file}"))
    return {path.parent.name.removesuffix("_"): _first_line(path) for path in paths}


def package_of(command: str) -> str:
    """It returns what the folder of a command is called."""
    return f"{command}_" if keyword.iskeyword(command) else command


def command_parser(
    prog: str, description: str, epilog: str, commands: Mapping[str, str], metavar: str
) -> argparse.ArgumentParser:
    """It makes a parser whose one argument is a command (`command`); what follows it is for that one to parse."""
    parser = CommandLine(prog=prog, description=description, epilog=epilog)
    choices = parser.add_subparsers(dest="command", required=True, metavar=metavar)
    for name, line in commands.items():
        choices.add_parser(name, help=line.replace("%", "%%"))
    return parser


def run_program(name: str, main: Callable[[], int]) -> int:
    """It runs a program in a process of its own, which heeds signals before anything heavy is imported.

    It returns the exit code: that of `main`, or `INTERRUPTED` for Ctrl-C and requests to end.
    """
    show_anything()
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
                signal.signal(number, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # `surefoot` blocks it until here
        try:
            return main()
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return unwritten(error, name)


def unwritten(error: OSError, name: str) -> int:
    """It ends the program `name` that could not write what it says, or returns its exit code.

    Raises:
        OSError: it was something else, as it names a file.
    """
    if isinstance(error, BrokenPipeError):  # `surefoot ... | head`: end as other tools do
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    if error.filename is not None:
        raise error
    print(f"{name}: error: cannot write: {error.strerror}", file=sys.stderr)  # a disk is full
    return UNWRITTEN


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]
