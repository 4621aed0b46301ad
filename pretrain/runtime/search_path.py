"""This is the first module of ours that a rank imports, and it imports none: another `data_pipeline` may lie in the
current directory."""

import os
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]
"""Our packages lie in this folder."""


def leave_out_current_folder() -> None:
    """It removes the current directory from the search path, unless our packages or Python's lie there.

    `python -m` and DeepSpeed put it there. A module that was found in place of this package itself cannot be helped:
    PYTHONSAFEPATH=1, which `surefoot train` sets, keeps Python from looking there.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed
        return
    if here != str(ROOT) and here not in sysconfig.get_paths().values():
        sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
