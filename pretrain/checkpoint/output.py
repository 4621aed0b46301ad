"""What is made of checkpoints is put into a folder of its own, which appears complete or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.files import new_folder
from data_pipeline.shown import shown
from pretrain.checkpoint.lifecycle import space_problem
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.runtime.units import in_units

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def written(out: Path, size: int) -> Iterator[Path]:
    """Within it, the folder that becomes `out`, or what a link there leads to, is filled, with about `size` bytes.

    Raises:
        ConfigurationError: `out` is there already.
        CheckpointError: there is no room, or the disk refuses. What is read within raises an error of its own.
    """
    try:
        with new_folder(Path(os.path.realpath(out))) as folder:
            if problem := space_problem(folder.parent, size):
                raise CheckpointError(problem)
            yield folder
    except FileExistsError as error:
        raise ConfigurationError(f"--out {shown(out)}: {error.strerror}; choose another folder") from error
    except OSError as error:
        need = f"; {in_units(size)} are needed" if error.errno in NO_ROOM else ""
        raise CheckpointError(f"--out {shown(out)}: {error.strerror}{need}") from error
