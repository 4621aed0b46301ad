"""A prepared folder records what it was made with and from, so that nothing is made twice or replaced in error."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.parsing import parse_json, read_whole
from data_pipeline.preparing.workspace import (
    RECORD,
    TargetExists,
    check_replaceable,
    entries,
    stage_of,
    workspace,
)
from data_pipeline.shards.storage import data_errors
from data_pipeline.shown import shown

SUMMARY = "summary"
"""Key of what was read, beside all that decides it."""

ENTRIES = "entries"
"""Key of what was made: the names in the folder."""

Result = TypeVar("Result")


def make_record(kind: str, files: Sequence[Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """It returns all that decides the output: the kind of data, the raw files and the settings that matter."""
    digest, size = hashlib.sha256(), 0
    for path in files:
        with data_errors(path):  # it was there a moment ago
            stat = path.stat()
        size += stat.st_size
        digest.update(os.fsencode(path.absolute()) + f"\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
    return {
        "format": 1,
        "task": kind,
        "files": {"count": len(files), "bytes": size, "sha256": digest.hexdigest()},
        **settings,
    }


def make_once(
    target: Path,
    record: Mapping[str, Any],
    make: Callable[[Path], Result],
    *,
    overwrite: bool,
    summary: Callable[[Result], Mapping[str, Any]] = lambda result: {},
) -> Result | None:
    """It has `make` fill an empty folder, which takes the place of `target` when it is complete, and returns the
    result; None when `target` is there already, made with the same settings from the same files.

    `target` may be a link to a folder, a mount point or the current directory. What `summary` says of the result is
    kept with the record.

    Raises:
        DataError: another process is at work, or the file system refuses.
        TargetExists: `target` holds something else, and may not be replaced.
    """
    path = Path(os.path.realpath(target))
    with data_errors(path):
        # What a killed process has left may have to be put right before `target` can be judged.
        if not os.path.lexists(stage_of(path)) and _is_made(target, path, record, overwrite):
            return None
        with workspace(path) as space:
            if _is_made(target, path, record, overwrite):
                return None
            folder = space.new()
            with data_errors(folder):
                result = make(folder)
                made = {**record, SUMMARY: summary(result), ENTRIES: sorted([*os.listdir(folder), RECORD])}
                (folder / RECORD).write_text(json.dumps(made, indent=1) + "\n")
            _is_made(target, path, record, overwrite)  # again: the work may have taken hours
            space.publish()
            return result


def _is_made(target: Path, path: Path, record: Mapping[str, Any], overwrite: bool) -> bool:
    """It tells whether `target`, which lies at `path`, is what `record` says.

    Raises TargetExists where it holds anything else, and may not be replaced, cannot be or is not ours alone.
    """
    if not os.path.lexists(path):
        return False
    if path.is_dir() and not entries(path):
        check_replaceable(path)
        return False
    made = _record_of(path)
    if made is None:
        raise TargetExists(
            f"{target}: is there, and not a folder that `surefoot prepare` made; choose another --out"
        )
    kept = {SUMMARY, ENTRIES}
    differing = sorted(key for key in {*made, *record} - kept if made.get(key) != record.get(key))
    if differing and not overwrite:
        raise TargetExists(
            f"{target}: was made with other settings or files ({shown(', '.join(differing))} differ); "
            "--overwrite replaces it, or choose another --out"
        )
    if differing and (others := sorted({*entries(path)} - _names(made.get(ENTRIES)))):
        raise TargetExists(
            f"{target}: holds {shown(', '.join(others))}, which is not known to be of `surefoot prepare`; move it away "
            "to have the folder replaced, or choose another --out"
        )
    if differing:
        check_replaceable(path)
    return not differing


def _names(made: Any) -> set[str]:
    """It returns the names that a record says were made."""
    return {name for name in made if isinstance(name, str)} if isinstance(made, list) else set()


def _record_of(path: Path) -> dict[str, Any] | None:
    """It returns what a folder was made with and from; None where it does not say."""
    try:
        made = parse_json(read_whole(path / RECORD, follow=False))
    except (OSError, ValueError):
        return None
    return made if isinstance(made, dict) else None
