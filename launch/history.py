"""The story of a run, told from its ledger, the folder of its checkpoints and the end of its metrics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from pretrain.checkpoint.lifecycle import LATEST, QUARANTINED, candidates
from pretrain.checkpoint.tag import Tag
from pretrain.ledger.history import Rollback, RunHistory
from pretrain.ledger.record import Kind, Record

HEALTH = {
    Kind.SEALED: "sealed",
    Kind.CERTIFIED: "certified",
    Kind.CONDEMNED: "condemned",
    Kind.QUARANTINED: "quarantined",
}
"""What a record makes of a checkpoint."""
RETIRED = "retired"


@dataclass(frozen=True)
class Lineage:
    """A stretch of steps that follow from one another."""

    number: int
    first_step: int
    """The step that it goes on from."""
    last_step: int
    """The last one that is known of."""
    end: str
    """What came instead of its next step; empty for the current one."""


@dataclass(frozen=True)
class Checkpoint:
    """What has become of a checkpoint."""

    tag: str
    health: str
    """`sealed`, `certified`, `condemned`, `quarantined`, `torn`, or `retired`: deleted in good order."""
    latest: bool
    """DeepSpeed's `latest` points to it."""
    note: str = ""


@dataclass(frozen=True)
class Ending:
    """How the last session has ended."""

    state: str
    """`finished`, `stopped`, `preempted`, or `open`: it runs, or was killed."""
    code: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Lost:
    """What trouble has cost."""

    undone_steps: int
    """Steps that rollbacks have taken back."""
    withheld_updates: int
    wasted_steps: int
    """Steps undone, and those whose update was withheld and that were not undone as well."""
    skipped_samples: int


def ending(records: Iterable[Record]) -> Ending:
    """From the last record about sessions."""
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
    """Where each begins and ends; `last_step` is the last one of the current one."""
    ordered = sorted(records, key=lambda record: record.lineage)  # stable: in a lineage, by time
    groups = [list(group) for _, group in groupby(ordered, key=lambda record: record.lineage)]
    following = [*groups[1:], []][: len(groups)]
    return tuple(_lineage(*pair, last_step) for pair in zip(groups, following, strict=True))


def _lineage(group: Sequence[Record], following: Sequence[Record], last_step: int) -> Lineage:
    steps = [record.step for record in group]
    if not following:
        return Lineage(group[0].lineage, min(steps), max(*steps, last_step), "")
    return Lineage(group[0].lineage, min(steps), max(steps), _end(group, following))


def _end(group: Sequence[Record], following: Sequence[Record]) -> str:
    intents = [Rollback.of(record) for record in group if record.kind is Kind.ROLLBACK_INTENT]
    if intents:
        return f"rolled back to step {intents[-1].target_step} ({intents[-1].remedy})"
    tag = following[0].fields.get("tag", "an earlier step")
    if group[-1].kind is Kind.STOPPED:
        return f"stopped with code {group[-1].fields['code']}; resumed from {tag}"
    return f"left; resumed by hand from {tag}"


def lost(records: Iterable[Record], history: RunHistory) -> Lost:
    """Summed over the run."""
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
    """Those of the ledger and those in `folder`, oldest first; where they differ, what lies on the disk counts."""
    told = _told(records)
    found = _found(folder)
    latest = _latest(folder)
    names = sorted({*told, *found}, key=lambda name: (Tag.parse(name) or Tag(0, 0), name))
    return tuple(_checkpoint(name, found.get(name, RETIRED), told.get(name), latest) for name in names)


def _checkpoint(name: str, health: str, told: Record | None, latest: str) -> Checkpoint:
    note = str(told.fields.get("reason", "")) if told else "not in the ledger"
    if told and health == "sealed" and told.kind is Kind.CERTIFIED:
        note = "certified in the ledger, but its certificate is missing or unsound"
    return Checkpoint(name, health, name == latest, note)


def _told(records: Iterable[Record]) -> dict[str, Record]:
    """Tag -> the last record about its health."""
    return {
        str(record.fields["tag"]): record
        for record in records
        if record.kind in HEALTH and record.fields["tag"]
    }


def _found(folder: Path) -> dict[str, str]:
    """Tag -> health, of what lies on the disk."""
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
    try:
        return (folder / LATEST).read_text(errors="replace").strip()
    except OSError:
        return ""
