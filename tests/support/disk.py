"""Tests fill small file systems, and describe what a file holds."""

import hashlib
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pretrain.checkpoint.manifest import FileRecord


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """It mounts a file system of `size` bytes at `folder`; skips the test where mounting is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """It fills the file system of a folder to the last byte; removing the returned file makes room again."""
    path = folder / "ballast"
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 2**8, 1):
            _write_while_possible(file.fileno(), size)
    return path


def _write_while_possible(descriptor: int, size: int) -> None:
    try:
        while os.write(descriptor, bytes(size)) == size:
            pass
    except OSError:
        return


def records(folder: Path, names: Iterable[str], *, rank: int) -> dict[str, FileRecord]:
    """It returns what a manifest says of files as they are now."""
    contents = {name: (folder / name).read_bytes() for name in names}
    return {
        name: FileRecord(size=len(content), sha256=hashlib.sha256(content).hexdigest(), rank=rank)
        for name, content in contents.items()
    }
