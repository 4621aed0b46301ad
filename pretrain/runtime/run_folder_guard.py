"""A run writes into its own folder and nowhere else: this looks at all of it before the first write, and later at each
folder in it before something new is made there.

Files in a run folder are never links. The folders for checkpoints and for TensorBoard may be links to another disk,
made by the run folder's owner or whoever runs it, to a folder that holds nothing but what a run puts there. The run
folder itself may be reached in any way.
"""

import os
import re
import stat
from pathlib import Path

from data_pipeline.files import remove_temporaries
from pretrain.errors import ConfigurationError
from pretrain.run_folder import (
    CHECKPOINTS,
    CONFIG,
    EVIDENCE,
    HEARTBEATS,
    LEDGER,
    METRICS,
    PROFILES,
    RUN_LOCK,
    STACKS,
    SUPERVISED_CONFIG,
    SUPERVISOR_EVENTS,
    SUPERVISOR_LOCK,
    TENSORBOARD,
)

FILES = (CONFIG, METRICS, LEDGER, RUN_LOCK, SUPERVISED_CONFIG, SUPERVISOR_EVENTS, SUPERVISOR_LOCK)
FOLDERS = (CHECKPOINTS, TENSORBOARD, EVIDENCE, HEARTBEATS, STACKS, PROFILES)
LINKABLE = {
    CHECKPOINTS: re.compile(
        r"(\.retired-)?step\d+-a\d+(\.[a-z-]+)?|latest|run\.lock|README\.txt|\..+\.tmp|lost\+found"
    ),
    TENSORBOARD: re.compile(r"events\.out\.tfevents\..+|lost\+found"),
}
"""Folder that may be a link -> names of what a run puts into it."""


def check_run_folder(folder: Path) -> None:
    """It raises ConfigurationError where a write would end up in what does not belong to the run, and OSError."""
    problems = [problem for name in FILES if (problem := _file_problem(folder / name))]
    problems += [problem for name in FOLDERS if (problem := folder_problem(folder / name))]
    if problems:
        raise ConfigurationError("; ".join(problems))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes have left half-written in a run folder that this process has locked.

    Raises OSError.
    """
    for place in (folder, folder / EVIDENCE, folder / HEARTBEATS, folder / PROFILES, folder / CHECKPOINTS):
        remove_temporaries(place)
    for tag in (folder / CHECKPOINTS).glob("step*"):
        if tag.is_dir() and not tag.is_symlink():
            remove_temporaries(tag)


def _file_problem(path: Path) -> str:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ""
    if stat.S_ISREG(status.st_mode):
        return ""
    what = "a link" if stat.S_ISLNK(status.st_mode) else "no regular file"
    return f"{path}: is {what}, and is not written to; remove it, or choose another run.name"


def folder_problem(path: Path) -> str:
    """It says why nothing may be written into this folder of a run; empty if it may, or is not there.

    Raises OSError.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ""
    if stat.S_ISDIR(status.st_mode):
        return ""
    if not stat.S_ISLNK(status.st_mode):
        return f"{path}: is no folder; remove it, or choose another run.name"
    names = LINKABLE.get(path.name)
    if names is None:
        return f"{path}: is a link, and only {' and '.join(LINKABLE)} may be; replace it by a folder"
    if status.st_uid not in (os.geteuid(), path.parent.stat().st_uid):
        return f"{path}: is a link that another user made (id {status.st_uid}); replace it by one of your own"
    if not path.is_dir():
        return f"{path}: is a link to {os.readlink(path)}, which is no folder; make that first"
    foreign = sorted(name for name in os.listdir(path) if not names.fullmatch(name))
    if foreign:
        held = ", ".join(foreign[:3])
        return (
            f"{path}: is a link to a folder that holds other things ({held}); link to an empty folder instead"
        )
    return ""
