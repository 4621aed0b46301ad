"""A workspace is a folder that appears complete or not at all."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.shards.storage import data_errors

LOCK = "lock"


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """It gives an empty folder beside `target` that takes its place when the block ends well, and else is removed.

    What a killed process left there is cleared first. Raises DataError when another process is at work.
    """
    folder = target.with_name(f".{target.name}.partial")
    with data_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(f"{target}: another process is preparing it") from error
            try:
                _clear(folder)
                yield folder
                _publish(folder, target)
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _publish(folder: Path, target: Path) -> None:
    """It renames `folder` to `target`; what was there goes only when the new is complete."""
    (folder / LOCK).unlink()
    replaced = target.with_name(f".{target.name}.replaced")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    folder.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
