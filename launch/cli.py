"""This module is the entry of the `surefoot` command: it holds what must be right before all else is imported."""

import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from launch.children import OwnPackages

INTERRUPTED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """It runs the command line and returns the exit code.

    The commands are imported by name in here: Ctrl-C ends the process without a traceback meanwhile, too, and our
    packages are found before others that are called alike.
    """
    if OwnPackages not in sys.meta_path:
        sys.meta_path.insert(0, OwnPackages)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return int(import_module("launch.subcommands").run(words))
        finally:
            if sys.stdout is not None:  # as it is where it was closed, until that is mended
                sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return int(import_module("data_pipeline.program").unwritten(error, "surefoot"))


if (
    __name__ == "__main__"
):  # `python -m launch.cli`: with nothing here it would end with 0, having done nothing
    import_module("pretrain.runtime.search_path").leave_out_current_folder()
    sys.exit(main())
