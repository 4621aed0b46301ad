"""`python -m pretrain.commands COMMAND ...`, which `surefoot COMMAND` becomes, uses models: one process, no launcher.

A command is a room in this one with two modules. `options.py` has a first docstring line for the list of commands, and
`parser()`, which declares the options; it imports nothing that takes time, so that help, completion and mistakes come
at once. `run.py` has `run(options)`, which does it and returns the exit code. No command is imported that was not asked
for, and no `run.py` before the options are right.
"""

from pretrain.runtime.search_path import leave_out_current_folder

leave_out_current_folder()  # before anything else of ours is imported

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.program import command_parser, commands_in, package_of, run_program
from data_pipeline.shortage import shortage
from data_pipeline.shown import masked, shown, shown_lines
from pretrain.commands.arguments import check_paths
from pretrain.errors import DATA_EXIT_CODE, CheckpointError, SurefootError
from pretrain.runtime.startup import check_current_folder, open_standard_streams

ROOM = Path(__file__).parent


def main(arguments: Sequence[str]) -> int:
    """It runs the command that the first argument names, and returns the exit code."""
    parser = command_parser(
        "surefoot",
        "Use trained models.",
        "exit codes: 0 done, 2 configuration or command line, 3 data, 4 no usable checkpoint, or no room, "
        "130 interrupted",
        commands_in(ROOM, "options.py"),
        "COMMAND",
    )
    name = parser.parse_args(arguments[:1]).command
    package = f"pretrain.commands.{package_of(name)}"
    options = import_module(f"{package}.options").parser().parse_args(arguments[1:])
    try:
        check_paths(options)
        return int(import_module(f"{package}.run").run(options))
    except (SurefootError, DataError) as error:
        print(f"surefoot {name}: error: {shown_lines(masked(error))}", file=sys.stderr)
        return error.exit_code if isinstance(error, SurefootError) else DATA_EXIT_CODE
    except OSError as error:
        if error.filename is None:
            raise
        # The run folder of another user, above all: what is missing in it, whoever opens it says.
        print(f"surefoot {name}: error: {shown(error.filename)}: {error.strerror}", file=sys.stderr)
        return CheckpointError.exit_code
    except (MemoryError, RuntimeError) as error:
        if not (lacking := shortage(error)):
            raise
        print(f"surefoot {name}: error: {lacking}", file=sys.stderr)
        return CheckpointError.exit_code


if __name__ == "__main__":  # worker processes import this file again and need none of it
    open_standard_streams()
    check_current_folder()
    sys.exit(run_program("surefoot", lambda: main(sys.argv[1:])))
