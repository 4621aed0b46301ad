"""The life of checkpoints on disk, for one process; `pretrain.checkpoint` makes all ranks agree on it.

    writing --seal--> sealed --retire--> gone
       |                 '--quarantine--> TAG.quarantined, with QUARANTINE.txt
       '--discard--> gone (a crash instead leaves it torn, as it is)

Only folders (no links) with a well-formed tag for a name are ever looked at.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pretrain.durable import sync_folder, write_durably
from pretrain.manifest import MANIFEST
from pretrain.tags import Tag, to_delete

LATEST = "latest"
QUARANTINED = ".quarantined"
RETIRED = ".retired-"
REASON = "QUARANTINE.txt"


@dataclass(frozen=True)
class Candidates:
    """Checkpoints of a run, newest first."""

    sealed: tuple[Tag, ...]
    """With a manifest; whether their bytes are still right, `pretrain.manifest.verify` says."""
    torn: tuple[Tag, ...]
    """Without one: a save that never ended."""


def candidates(checkpoints: Path) -> Candidates:
    """What lies in the folder of a run's checkpoints, which need not exist."""
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    tags = sorted(filter(None, map(Tag.parse, names)), reverse=True)
    folders = [tag for tag in tags if _is_folder(checkpoints / str(tag))]
    sealed = tuple(tag for tag in folders if (checkpoints / str(tag) / MANIFEST).is_file())
    return Candidates(sealed=sealed, torn=tuple(tag for tag in folders if tag not in sealed))


def create_folder(checkpoints: Path, step: int) -> Tag:
    """Make the folder of a new checkpoint, under the next attempt's tag.

    Attempts never start again: the newest checkpoint always stays, and those set aside or discarded count.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    sync_folder(checkpoints.parent)
    names = [path.name.removeprefix(RETIRED).removesuffix(QUARANTINED) for path in checkpoints.iterdir()]
    used = [Tag.parse(name) for name in names]
    attempt = 1 + max((tag.attempt for tag in used if tag), default=0)
    tag = Tag(step=step, attempt=attempt)
    (checkpoints / str(tag)).mkdir()
    sync_folder(checkpoints)
    return tag


def publish_latest(checkpoints: Path, tag: Tag) -> None:
    """Point DeepSpeed's `latest` to a sealed checkpoint, for stock tools; Surefoot itself never reads it."""
    write_durably(checkpoints / LATEST, str(tag))


def quarantine(checkpoints: Path, tag: Tag, reason: str) -> Path:
    """Set a bad checkpoint aside, as evidence, and take `latest` off it. Returns where it lies now."""
    aside = checkpoints / f"{tag}{QUARANTINED}"
    (checkpoints / str(tag)).rename(aside)
    sync_folder(checkpoints)
    write_durably(aside / REASON, reason.rstrip("\n") + "\n")
    remaining = candidates(checkpoints).sealed
    if remaining:
        publish_latest(checkpoints, remaining[0])
    else:
        (checkpoints / LATEST).unlink(missing_ok=True)
    return aside


def retire(checkpoints: Path, *, keep_last: int, keep_every: int | None) -> list[Tag]:
    """Delete the sealed checkpoints that need not be kept, older torn ones, and leftovers of an earlier call.

    Returns the tags. Called after a save. Only sealed checkpoints count as kept, and `seal` returns when the disk
    has them: nothing is deleted before what replaces it is durable.
    """
    for leftover in checkpoints.glob(f"{RETIRED}*"):
        shutil.rmtree(leftover)
    found = candidates(checkpoints)
    tags = to_delete(found.sealed, keep_last=keep_last, keep_every=keep_every)
    # One run at a time writes here, so a torn checkpoint that is older than a sealed one is what a crash left.
    tags += [tag for tag in found.torn if found.sealed and tag < found.sealed[0]]
    for tag in tags:
        shutil.rmtree(_take_out(checkpoints, tag))
    return tags


def discard(checkpoints: Path, tags: Iterable[Tag]) -> None:
    """Free the space of saves that failed. Empty folders reserve the tags until the next `retire`."""
    for tag in tags:
        retired = _take_out(checkpoints, tag)
        shutil.rmtree(retired)
        retired.mkdir()


def space_problem(folder: Path, needed: int) -> str | None:
    """Says so if the folder's file system has less than `needed` bytes free, as torch's error will not."""
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return f"{folder}: {free / 1e9:.2f} GB free, but a checkpoint needs {needed / 1e9:.2f} GB"


def _take_out(checkpoints: Path, tag: Tag) -> Path:
    """Rename before deleting, so that no crash leaves half a checkpoint under its own name."""
    retired = checkpoints / f"{RETIRED}{tag}"
    (checkpoints / str(tag)).rename(retired)
    sync_folder(checkpoints)
    return retired


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
