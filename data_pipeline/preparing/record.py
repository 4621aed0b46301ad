"""A prepared folder records what it was made with and from, so that nothing is made twice or replaced in error."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.preparing.workspace import workspace
from data_pipeline.shards.storage import data_errors

RECORD = "prepare.json"
"""What the folder was made with and from; written last."""

Result = TypeVar("Result")


class TargetExists(Exception):
    """The output folder is there and is not what was asked for."""


def make_record(kind: str, files: Sequence[Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """It returns all that decides the output: the kind of data, the raw files and the settings that matter."""
    digest, size = hashlib.sha256(), 0
    for path in files:
        stat = path.stat()
        size += stat.st_size
        digest.update(f"{path.absolute()}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
    return {
        "format": 1,
        "task": kind,
        "files": {"count": len(files), "bytes": size, "sha256": digest.hexdigest()},
        **settings,
    }


def make_once(
    target: Path, record: Mapping[str, Any], make: Callable[[Path], Result], *, overwrite: bool
) -> Result | None:
    """It has `make` fill an empty folder, which takes the place of `target` when it is complete, and returns the
    result; None when `target` is there already, made with the same settings from the same files.

    Raises TargetExists when `target` holds something else, and may not be replaced.
    """
    if _is_made(target, record, overwrite):
        return None
    with workspace(target) as folder, data_errors(folder):
        result = make(folder)
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    return result


def _is_made(target: Path, record: Mapping[str, Any], overwrite: bool) -> bool:
    """It tells whether `target` is what `record` says."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return False
    if not (target / RECORD).is_file():
        raise TargetExists(
            f"{target}: is there, and not a folder that `surefoot prepare` made; choose another --out"
        )
    made = json.loads((target / RECORD).read_text())
    differing = sorted(key for key in {*made, *record} if made.get(key) != record.get(key))
    if differing and not overwrite:
        raise TargetExists(
            f"{target}: was made with other settings or files ({', '.join(differing)} differ); "
            "--overwrite replaces it, or choose another --out"
        )
    return not differing
