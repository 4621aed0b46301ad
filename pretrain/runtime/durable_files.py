"""Files that are there, whole, after a crash: written beside, synced, then renamed."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Force the entries of a folder to disk: files made, renamed or removed in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, text: str) -> None:
    """Replace a file atomically: at any moment, also after a crash, it has its old text or the new one.

    Needs one writer per path. A crash may leave `.NAME.tmp`, which the next write replaces.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)
