"""The history of a run follows from its ledger, the folder of its checkpoints and the end of its metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from data_pipeline.parsing import read_whole
from pretrain.checkpoint.lifecycle import LATEST, QUARANTINED, best, candidates, size_problems
from pretrain.checkpoint.tag import Tag
from pretrain.ledger.history import Rollback, RunHistory
from pretrain.ledger.record import Kind, Record

HEALTH = {
    Kind.SEALED: "sealed",
    Kind.UNPROVEN: "sealed",
    Kind.CERTIFIED: "certified",
    Kind.CONDEMNED: "condemned",
    Kind.QUARANTINED: "quarantined",
}
"""A record of this kind makes this of a checkpoint."""
RETIRED = "retired"


@dataclass(frozen=True)
class Lineage:
    """A lineage is a stretch of steps that follow from one another."""

    number: int
    first_step: int
    """The lineage goes on from this step."""
    last_step: int
    """This is its last step that is known of."""
    end: str
    """It says what came instead of the next step; it is empty for the current lineage."""


@dataclass(frozen=True)
class Checkpoint:
    """It says what has become of a checkpoint."""

    tag: str
    health: str
    """It is `sealed`, `certified`, `condemned`, `quarantined`, `torn`, or `retired`: deleted in good order."""
    latest: bool
    """It is true where DeepSpeed's `latest` points here."""
    note: str = ""


@dataclass(frozen=True)
class Ending:
    """An ending says how the last session has ended."""

    state: str
    """It is `finished`, `stopped`, `preempted`, or `open`: the session runs, or was killed."""
    code: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Lost:
    """It sums what trouble has cost."""

    undone_steps: int
    """Rollbacks have taken so many steps back."""
    withheld_updates: int
    wasted_steps: int
    """It counts steps undone, and those whose update was withheld and that were not undone as well."""
    skipped_samples: int


def ending(records: Iterable[Record]) -> Ending:
    """It reads the ending from the last record about sessions."""
    state = Ending("open")
    for record in records:
        if record.kind is Kind.DONE:
            state = Ending("finished", 0)
        elif record.kind is Kind.PREEMPTED:
            state = Ending("preempted", 75)
        elif record.kind is Kind.STOPPED:
            state = Ending("stopped", record.fields["code"], record.fields["reason"])
        elif record.kind in (Kind.RUN_START, Kind.RESUMED):
            state = Ending("open")
    return state


def lineages(records: Sequence[Record], last_step: int) -> tuple[Lineage, ...]:
    """It returns where each lineage begins and ends; the current one ends with `last_step`."""
    ordered = sorted(records, key=lambda record: record.lineage)  # stable: in a lineage, by time
    groups = [list(group) for _, group in groupby(ordered, key=lambda record: record.lineage)]
    following = [*groups[1:], []][: len(groups)]
    return tuple(_lineage(*pair, last_step) for pair in zip(groups, following, strict=True))


def _lineage(group: Sequence[Record], following: Sequence[Record], last_step: int) -> Lineage:
    """It makes a lineage of its records and of those of the lineage after it."""
    steps = [record.step for record in group]
    if not following:
        # Alarms are about the step that was judged, which one that ends the run was not to be counted as taken.
        last = group[-1].step if group[-1].kind is Kind.STOPPED else max(*steps, last_step)
        return Lineage(group[0].lineage, min(steps), last, "")
    return Lineage(group[0].lineage, min(steps), max(steps), _end(group, following))


def _end(group: Sequence[Record], following: Sequence[Record]) -> str:
    """It says why the lineage was left."""
    intents = [Rollback.of(record) for record in group if record.kind is Kind.ROLLBACK_INTENT]
    if intents:
        return f"rolled back to step {intents[-1].target_step} ({intents[-1].remedy})"
    tag = following[0].fields.get("tag", "an earlier step")
    if group[-1].kind is Kind.STOPPED:
        return f"stopped with code {group[-1].fields['code']}; resumed from {tag}"
    return f"left; resumed by hand from {tag}"


def lost(records: Iterable[Record], history: RunHistory) -> Lost:
    """It sums the losses over the run."""
    undone = [range(r.attempt - r.undone + 1, r.attempt + 1) for r in history.rollbacks]
    withheld = {record.attempt for record in records if record.kind is Kind.VETO}
    kept = [attempt for attempt in withheld if not any(attempt in attempts for attempts in undone)]
    return Lost(
        undone_steps=sum(map(len, undone)),
        withheld_updates=len(withheld),
        wasted_steps=sum(map(len, undone)) + len(kept),
        skipped_samples=history.skipped_samples,
    )


def checkpoints(folder: Path, records: Iterable[Record]) -> tuple[Checkpoint, ...]:
    """It lists those of the ledger and those in `folder`, oldest first; where they differ, the disk counts."""
    recorded = _recorded(records)
    found = _found(folder)
    latest = _latest(folder)
    names = sorted({*recorded, *found}, key=lambda name: (Tag.parse(name) or Tag(0, 0), name))
    listed = [_checkpoint(name, found.get(name, RETIRED), recorded.get(name), latest) for name in names]
    lowest = best(folder, candidates(folder).sealed)
    return tuple(
        replace(one, note=one.note or "of the lowest validation loss") if one.tag == str(lowest) else one
        for one in (_with_sizes(folder, one) for one in listed)
    )


def _with_sizes(folder: Path, one: Checkpoint) -> Checkpoint:
    """It notes files of a checkpoint that are missing or of another size; whoever loads it looks at their bytes."""
    if one.note or one.health not in ("sealed", "certified"):
        return one
    return replace(one, note=size_problems(folder / one.tag))


def _checkpoint(name: str, health: str, record: Record | None, latest: str) -> Checkpoint:
    """It makes one of what lies on the disk and what the ledger says, and notes where the two differ."""
    note = str(record.fields.get("reason", "")) if record else "not in the ledger"
    if record and health == "sealed" and record.kind is Kind.CERTIFIED:
        note = "certified in the ledger, but its certificate is missing or unsound"
    return Checkpoint(name, health, name == latest, note)


def _recorded(records: Iterable[Record]) -> dict[str, Record]:
    """It maps a tag to the last record about its health."""
    return {
        str(record.fields["tag"]): record
        for record in records
        if record.kind in HEALTH and record.fields["tag"]
    }


def _found(folder: Path) -> dict[str, str]:
    """It maps a tag to its health, for what lies on the disk."""
    on_disk = candidates(folder)
    aside = [path.name.removesuffix(QUARANTINED) for path in folder.glob(f"step*{QUARANTINED}")]
    kinds: Mapping[str, Iterable[Tag | str]] = {
        "sealed": on_disk.sealed,
        "certified": on_disk.certified,
        "condemned": on_disk.condemned,
        "torn": on_disk.torn,
        "quarantined": aside,
    }
    return {str(tag): health for health, tags in kinds.items() for tag in tags}


def _latest(folder: Path) -> str:
    """It returns the tag that `latest` names, or nothing."""
    try:
        return read_whole(folder / LATEST, limit=4096).decode(errors="replace").strip()
    except OSError:
        return ""
