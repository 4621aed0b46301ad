"""All ranks of a run write into one folder, on a disk that their hosts share; a host with one of its own is found out
here, and not at the first checkpoint."""

import socket
import time
from pathlib import Path

from data_pipeline.files import create_file, temporary_name
from parallel.mesh import ParallelMesh
from pretrain.errors import ConfigurationError
from pretrain.run_folder import CHECKPOINTS
from pretrain.runtime.agreement import agreed

SECONDS = 10.0
"""A file system of a network may take so long to show one host what another has written."""
PAUSE = 0.1
MOST_NAMED = 4


def check_shared(folder: Path, mesh: ParallelMesh) -> None:
    """Raise ConfigurationError on all ranks unless each sees what rank 0 writes where checkpoints are to lie."""
    if mesh.world_size == 1:
        return
    mark = Path(mesh.gather(agreed(mesh, lambda: _write_mark(folder) if mesh.rank == 0 else ""))[0])
    try:
        blind = mesh.gather("" if _appears(mark) else f"rank {mesh.rank} on {socket.gethostname()}")
    finally:
        if mesh.rank == 0:
            mark.unlink(missing_ok=True)
    if named := list(filter(None, blind)):
        others = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        raise ConfigurationError(
            f"run.folder: {mark.parent} is another folder for {', '.join(named[:MOST_NAMED])}{others} than for rank 0, "
            "which could not make a checkpoint of all; choose one on a disk that all hosts share"
        )


def _write_mark(folder: Path) -> str:
    checkpoints = folder / CHECKPOINTS  # which may be a link to another disk
    mark = (checkpoints if checkpoints.is_dir() else folder) / temporary_name("seen-by-all")
    create_file(mark).close()
    return str(mark)


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(PAUSE)
    return True
