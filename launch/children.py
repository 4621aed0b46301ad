"""Processes that we start import this installation of ours, and nothing that lies in the current directory.

`python -m` looks into the current directory before anything else, and DeepSpeed puts it on the search path of hosts:
a `pretrain.py`, `data_pipeline/` or `random.py` of the user's would run in place of ours or of Python's.
"""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

PACKAGES = ("data_pipeline", "launch", "parallel", "pretrain")
ROOT = Path(__file__).absolute().parents[1]
"""Our packages lie in this folder: a checkout, or where pip has installed them."""
INSTALLED = ROOT.name in ("site-packages", "dist-packages")
"""It is true where Python finds our packages by itself."""


class OwnPackages:
    """It is a finder that looks for our packages where this one lies, whatever else is on the search path."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """It finds our packages; all else is left to other finders."""
        return PathFinder.find_spec(name, [str(ROOT)]) if name in PACKAGES else None


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """It returns the environment of a process that imports what we import, wherever it is started.

    Text is UTF-8 in it, whatever the locale says: libraries (torch 2.13) read files of their own by that.
    """
    path = os.pathsep.join(search_path(environment.get("PYTHONPATH", "")))
    return {**environment, "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1", "PYTHONPATH": path}


def search_path(given: str) -> Iterator[str]:
    """It yields the entries of a PYTHONPATH, ours before the user's.

    Without those that mean the current directory: an empty one does, which `PYTHONPATH=$PYTHONPATH:DIR` has. Our own
    folder is not needed where pip has installed us, and would put other packages before those of Python there; so what
    would come before our packages then is left out.
    """
    if not INSTALLED:
        yield str(ROOT)
    for entry in map(os.path.abspath, given.split(os.pathsep)):
        if entry != os.getcwd() and not (INSTALLED and holds_our_names(entry)):
            yield entry


def holds_our_names(folder: str) -> bool:
    """It tells whether modules or packages in this folder are called as ours are; plain folders do no harm."""
    found = (PathFinder.find_spec(name, [folder]) for name in PACKAGES)
    return any(spec is not None and spec.origin is not None for spec in found)


def become(module: str, arguments: Sequence[str]) -> None:
    """It becomes another program of ours, which has options of its own."""
    # Until it can deal with Ctrl-C, that waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    command = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, command, child_environment())
