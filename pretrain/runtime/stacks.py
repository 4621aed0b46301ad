"""A rank tells whoever asks with a signal what each of its threads is at: `stacks/rank_00000.txt` in the run folder.

The handler is in C and takes no lock of the interpreter, so a rank answers that hangs in a collective or in a kernel
driver's call. One that was stopped, or waits for a disk without end, does not.
"""

import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.files import open_own, open_regular
from pretrain.run_folder import STACKS, rank_file

REQUEST = signal.SIGUSR2
HEADING = "process "


def stacks_file(run_folder: Path, rank: int) -> Path:
    return run_folder / STACKS / rank_file(rank, "txt")


@contextmanager
def stacks_on_request(run_folder: Path, rank: int) -> Iterator[None]:
    """Append all stacks to this rank's file at each `REQUEST`; without a disk to write to there are none."""
    path = stacks_file(run_folder, rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _forget_killed(path)
        file = os.fdopen(open_own(path), "ab", buffering=0)  # nothing is left to be written when it is closed
    except OSError:
        yield
        return
    with file:
        size = os.fstat(file.fileno()).st_size
        with suppress(OSError):
            file.write(f"{HEADING}{os.getpid()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        heading = os.fstat(file.fileno()).st_size
        faulthandler.register(REQUEST, file)
        try:
            yield
        finally:
            faulthandler.unregister(REQUEST)
            with suppress(OSError):
                if os.fstat(file.fileno()).st_size == heading:  # nobody has asked
                    file.truncate(size)
                if os.fstat(file.fileno()).st_size == 0:
                    path.unlink()
                    path.parent.rmdir()


def _forget_killed(path: Path) -> None:
    """Remove a file that has but headings of processes which were killed before anybody asked them. Raises OSError."""
    with suppress(FileNotFoundError), open_regular(path) as file:
        if all(line.startswith(HEADING.encode()) for line in file):
            path.unlink()


def request_stacks(pid: int) -> None:
    """Ask a process for its stacks, if it is one that answers; the signal would end another one."""
    with suppress(OSError):
        if _catches(pid, REQUEST):
            os.kill(pid, REQUEST)


def _catches(pid: int, number: int) -> bool:
    """It says whether a process has a handler for a signal."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False
