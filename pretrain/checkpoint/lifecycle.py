"""This is the life of checkpoints on disk, for one process; `folder`, `writer` and `loader` make all ranks agree on it.

    writing --seal--> sealed --certify--> certified --retire--> gone
       |                 |'---------------'|
       |                 |                 '--condemn----> condemned: with CONDEMNED.txt, not loaded unless told
       |                 |--quarantine--> TAG.quarantined, with QUARANTINE.txt
       |                 '--of another run--> TAG.other-run
       '--discard--> gone (a crash instead leaves it torn, as it is)

Each step is one durable write or rename, so a crash leaves a checkpoint before it or after it. DeepSpeed's `latest`
follows from that, and is set anew after each step and at every start. Only folders (no links) with a well-formed tag
for a name are ever looked at.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from data_pipeline.files import remove, replace_file, sync_folder
from pretrain.checkpoint.certificate import read_certificate
from pretrain.checkpoint.manifest import MANIFEST, read_manifest, size_problem
from pretrain.checkpoint.retention import CONDEMNED_KEPT, Retention
from pretrain.checkpoint.tag import Tag
from pretrain.errors import CheckpointError
from pretrain.runtime.units import in_units

README = "README.txt"
ABOUT_FILES = """\
Checkpoints of a Surefoot run. `surefoot inspect` tells their health; the command that trains resumes from them,
on other numbers of ranks as well.

  surefoot export RUN[@TAG] --to huggingface|safetensors --out DIR      plain weights, for everything else
  surefoot convert RUN[@TAG] --tensor N --pipeline N --out DIR          a run in another layout
  surefoot inspect RUN[@TAG] --weights                                  what is in one

state_*.safetensors are in the format of that name: of each weight (fp32) and of what the optimizer keeps of it, the
share of one tensor-parallel rank, or a run of its elements. MANIFEST.json says how shares make up tensors. They are
no files of DeepSpeed: zero_to_fp32.py and ds_to_universal.py have nothing to do here.
"""
"""What users of DeepSpeed's scripts have to know stands where they run them."""

LATEST = "latest"
QUARANTINED = ".quarantined"
FOREIGN = ".other-run"
RETIRED = ".retired-"
REASON = "QUARANTINE.txt"
CONDEMNED = "CONDEMNED.txt"


@dataclass(frozen=True)
class Candidates:
    """It lists the checkpoints of a run, newest first."""

    sealed: tuple[Tag, ...]
    """With a manifest and not condemned; whether their bytes are still right, `manifest.verify` says."""
    certified: dict[Tag, int]
    """Those of them with a sound certificate, each with the step at which it was given."""
    condemned: tuple[Tag, ...]
    """With a manifest and the mark that they are not to be loaded."""
    torn: tuple[Tag, ...]
    """Without a manifest: a save that never ended."""

    def preferred(self, limit_step: int, *, oldest: bool = False) -> tuple[Tag, ...]:
        """It returns where a rollback to at most this step may go, see `by_preference`."""
        return by_preference(self.sealed, self.certified.__contains__, limit_step, oldest=oldest)


class HasStep(Protocol):
    """It is something of a step that a run can go back to, on disk or in host memory."""

    @property
    def step(self) -> int: ...


AnyCandidate = TypeVar("AnyCandidate", bound=HasStep)


def by_preference(
    found: Iterable[AnyCandidate],
    is_certified: Callable[[AnyCandidate], bool],
    limit_step: int,
    *,
    oldest: bool = False,
) -> tuple[AnyCandidate, ...]:
    """It returns those of at most this step, certified ones first, each kind newest (or oldest) first.

    `found` has the newest of two of the same step first.
    """
    within = sorted((one for one in found if one.step <= limit_step), key=lambda one: -one.step)
    return tuple(sorted(reversed(within) if oldest else within, key=lambda one: not is_certified(one)))


def candidates(checkpoints: Path) -> Candidates:
    """It returns what lies in the folder of a run's checkpoints, which need not exist."""
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    tags = sorted(filter(None, map(Tag.parse, names)), reverse=True)
    folders = {tag: checkpoints / str(tag) for tag in tags if _is_folder(checkpoints / str(tag))}
    whole = [tag for tag, folder in folders.items() if (folder / MANIFEST).is_file()]
    condemned = tuple(tag for tag in whole if (folders[tag] / CONDEMNED).exists())
    sealed = tuple(tag for tag in whole if tag not in condemned)
    steps = {tag: _certified_at(folders[tag]) for tag in sealed}
    return Candidates(
        sealed=sealed,
        certified={tag: step for tag, step in steps.items() if step is not None},
        condemned=condemned,
        torn=tuple(tag for tag in folders if tag not in whole),
    )


def best(checkpoints: Path, sealed: Collection[Tag]) -> Tag | None:
    """It returns which of the sealed checkpoints has the lowest validation loss, as the newest one knows; none: the run
    keeps none for that, or it is not there."""
    if not sealed:
        return None
    try:
        step = read_manifest(checkpoints / str(max(sealed))).state.best_step
    except CheckpointError:
        return None
    return max((tag for tag in sealed if step and tag.step == step), default=None)


def size_problems(folder: Path) -> str:
    """It says which files of a checkpoint are missing or of another size than was saved; empty if none are."""
    try:
        files = read_manifest(folder).files
    except CheckpointError as error:
        return str(error)
    return "; ".join(filter(None, (size_problem(folder / name, record) for name, record in files.items())))


def _certified_at(folder: Path) -> int | None:
    try:
        return read_certificate(folder).step
    except CheckpointError:
        return None


def create_folder(checkpoints: Path, step: int) -> Tag:
    """It makes the folder of a new checkpoint, under the next attempt's tag.

    Attempts never start again: the newest checkpoint always stays, and those set aside or discarded count.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_readme(checkpoints)
    sync_folder(checkpoints.parent)
    names = [
        path.name.removeprefix(RETIRED).removesuffix(QUARANTINED).removesuffix(FOREIGN)
        for path in checkpoints.iterdir()
    ]
    used = [Tag.parse(name) for name in names]
    attempt = 1 + max((tag.attempt for tag in used if tag), default=0)
    tag = Tag(step=step, attempt=attempt)
    (checkpoints / str(tag)).mkdir()
    sync_folder(checkpoints)
    return tag


def write_readme(checkpoints: Path) -> None:
    """It says what the files are, where people look at them; a full disk is no matter."""
    if not (checkpoints / README).exists():
        with suppress(OSError):
            replace_file(checkpoints / README, ABOUT_FILES, durable=False)


def update_latest(checkpoints: Path, *, certified: bool) -> None:
    """It points DeepSpeed's `latest` to the newest (certified) checkpoint, for stock tools; Surefoot never reads it."""
    found = candidates(checkpoints)
    tag = next(iter(found.certified if certified else found.sealed), None)
    if tag is not None:
        replace_file(checkpoints / LATEST, str(tag))
    else:
        (checkpoints / LATEST).unlink(missing_ok=True)


def condemn(checkpoints: Path, tag: Tag, reason: str) -> None:
    """It marks a checkpoint as one that is not to be loaded, and keeps it as evidence."""
    replace_file(checkpoints / str(tag) / CONDEMNED, reason.rstrip("\n") + "\n")


def reinstate(checkpoints: Path, tag: Tag) -> None:
    """It takes the mark away."""
    (checkpoints / str(tag) / CONDEMNED).unlink(missing_ok=True)
    sync_folder(checkpoints / str(tag))


def quarantine(checkpoints: Path, tag: Tag, reason: str) -> Path:
    """It sets a damaged checkpoint aside, as evidence, and returns where that lies now."""
    aside = checkpoints / f"{tag}{QUARANTINED}"
    (checkpoints / str(tag)).rename(aside)
    sync_folder(checkpoints)
    replace_file(aside / REASON, reason.rstrip("\n") + "\n")
    return aside


def set_foreign_aside(checkpoints: Path, run_ids: Collection[str], wanted: str | None) -> list[Tag]:
    """It sets checkpoints aside that other runs than these have written, and returns their tags; the one called
    `wanted` is brought back, whoever wrote it, and others of that run are left alone.

    Raises CheckpointError where all would have to go: the run then has begun elsewhere, or its ledger is lost.
    """
    aside = checkpoints / f"{wanted}{FOREIGN}"
    if wanted and Tag.parse(wanted) and _is_folder(aside) and not os.path.lexists(checkpoints / wanted):
        aside.rename(checkpoints / wanted)
    known = {"", *run_ids, *([_run_id(checkpoints / wanted)] if wanted else [])}
    found = candidates(checkpoints)
    whole = [tag for tag in (*found.sealed, *found.condemned) if str(tag) != wanted]
    foreign = [tag for tag in whole if _run_id(checkpoints / str(tag)) not in known]
    if foreign and foreign == whole and not run_ids and not wanted:
        raise CheckpointError(
            f"{checkpoints}: {foreign[0]} belongs to a run that the ledger here knows nothing of; "
            f"--resume {foreign[0]} goes on from it, and without the checkpoints of that run a new one begins"
        )
    for tag in foreign:
        (checkpoints / str(tag)).rename(checkpoints / f"{tag}{FOREIGN}")
        sync_folder(checkpoints)
    return foreign


def _run_id(folder: Path) -> str:
    """It returns the run that wrote a checkpoint; nothing where that is not known, as loading will find out."""
    try:
        return read_manifest(folder).run_id
    except CheckpointError:
        return ""


def retire(checkpoints: Path, retention: Retention) -> list[Tag]:
    """It deletes the checkpoints that need not be kept, older torn ones, and leftovers of an earlier call.

    It returns their tags, and is called after a save or a certificate. Only what is durable counts as kept: nothing is
    deleted before what replaces it is on disk.
    """
    for leftover in checkpoints.glob(f"{RETIRED}*"):
        remove(leftover)
    found = candidates(checkpoints)
    tags = retention.to_delete(found.sealed, found.certified, best(checkpoints, found.sealed))
    tags += found.condemned[CONDEMNED_KEPT:]
    # One run at a time writes here, so a torn checkpoint that is older than a sealed one is what a crash left.
    tags += [tag for tag in found.torn if found.sealed and tag < found.sealed[0]]
    for tag in tags:
        remove(_take_out(checkpoints, tag))
    return tags


def discard(checkpoints: Path, tags: Iterable[Tag]) -> None:
    """It frees the space of saves that failed. Empty folders reserve the tags until the next `retire`."""
    for tag in tags:
        retired = _take_out(checkpoints, tag)
        remove(retired)
        retired.mkdir()


def space_problem(folder: Path, needed: int) -> str | None:
    """It says so if the folder is gone, or its file system has less than `needed` bytes free, as torch does not."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"{folder}: {error.strerror}"
    if free >= needed:
        return None
    return f"{folder}: {in_units(free)} free, but {in_units(needed)} are needed"


def _take_out(checkpoints: Path, tag: Tag) -> Path:
    """It renames before anything is deleted, so that no crash leaves half a checkpoint under its own name."""
    retired = checkpoints / f"{RETIRED}{tag}"
    (checkpoints / str(tag)).rename(retired)
    sync_folder(checkpoints)
    return retired


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
