"""What a run has been through, as far as it bears on what comes, is a pure fold over the records of its ledger.

Every rank folds the same records, so all ranks have equal states; after a crash the ledger gives the state back.
A decision counts from its intent on: what was spent stays spent when the deed is cut short and done again.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, reduce
from typing import Any

from data_pipeline.reading.ranges import SampleRange, merge_ranges
from pretrain.checkpoint.tag import Tag
from pretrain.ledger.record import Kind, Record
from pretrain.step import Remedy

VETO_WINDOW = 1000
"""Attempts within which vetoes are counted."""


@dataclass(frozen=True)
class LearningRateEdit:
    """Its factor on the schedule's learning rate holds until trouble is passed, and then returns linearly to 1."""

    update: int
    """Updates applied before the first one that it holds for."""
    factor: float
    return_updates: int
    until: int = 0
    """The first update of the return."""

    def at(self, update: int) -> float:
        if update < self.update:
            return 1.0
        progress = min(max(update - max(self.until, self.update), 0) / self.return_updates, 1.0)
        return self.factor + (1 - self.factor) * progress


@dataclass(frozen=True)
class Rollback:
    """A rollback is a return to an earlier step, as its intent tells it."""

    step: int
    """The step whose verdict it was."""
    attempt: int
    """Of that step."""
    remedy: Remedy
    onset: int
    target_step: int
    """The step returned to."""
    target_tag: str | None
    """The checkpoint returned to; none: a candidate in host memory."""
    skip: tuple[SampleRange, ...]
    """Samples left out from then on."""
    learning_rate_factor: float
    reason: str
    learning_rate_until: int = 0
    """Updates applied by when the lowered learning rate may return: a horizon past the judged step."""

    @property
    def undone(self) -> int:
        """It counts the steps that are taken back, the judged one included."""
        return self.step - self.target_step

    def intent(self, lineage: int) -> Record:
        """It returns the record to write before the deed, and again when it turns out to need another target."""
        rest = {name: value for name, value in asdict(self).items() if name not in ("step", "attempt")}
        return Record(Kind.ROLLBACK_INTENT, self.step, self.attempt, lineage, rest)

    @classmethod
    def of(cls, record: Record) -> "Rollback":
        """It is the inverse of `intent`."""
        remedy, skip = Remedy(record.fields["remedy"]), merge_ranges(record.fields["skip"])
        return cls(record.step, record.attempt, **{**record.fields, "remedy": remedy, "skip": skip})


@dataclass(frozen=True)
class RunHistory:
    """It has the counters, budgets and edits of a run; it is immutable, and equal on all ranks."""

    run_ids: tuple[str, ...] = ()
    """The random name of the run, and those of others whose checkpoints it was told to go on from."""
    lineage: int = 1
    attempt: int = 0
    """The last attempt that a record is about; curves go on after it when a rollback has turned the steps back."""
    skips: tuple[SampleRange, ...] = ()
    """Ranges of samples that are left out, merged."""
    learning_rate_edits: tuple[LearningRateEdit, ...] = ()
    rollbacks: tuple[Rollback, ...] = ()
    vetoes: tuple[int, ...] = ()
    """Attempts whose update was withheld since the last rollback, of the last `VETO_WINDOW` ones."""
    suspected_hosts: tuple[str, ...] = ()
    """Hosts that faults of memory were seen on."""
    sealed: frozenset[str] = frozenset()
    """Tags of all checkpoints that were ever complete."""
    certified: frozenset[str] = frozenset()
    """Tags of checkpoints that were certified and neither condemned nor damaged since."""
    condemned: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    """Tags that are never certified. In the ledger, as the losses that speak against them are soon forgotten."""
    certified_step: int = 0
    """The highest step that was ever certified or returned to: the measure of progress."""
    progress: tuple[int, ...] = ()
    """`certified_step` at each of `rollbacks`: where it stays the same, nothing was won in between."""
    pending: Rollback | None = None
    """Intended and not yet done: to be done, again or at last, before anything else."""
    declared_attempt: int = -1
    """The last attempt before a session went on with other settings: candidates up to it have baselines of before."""
    stopped: str = ""
    """Why the last session has given up, if it has."""
    finished: bool = False
    """The last step of the run was taken and everything is saved."""

    def after(self, record: Record) -> "RunHistory":
        """It returns the state once `record` is in the ledger."""
        lineage, attempt = max(self.lineage, record.lineage), max(self.attempt, record.attempt)
        change = _CHANGES.get(record.kind, _nothing)
        return replace(self, lineage=lineage, attempt=attempt, **change(self, record))

    def learning_rate_factor(self, update: int) -> float:
        """It returns what the schedule's learning rate is multiplied with, `update` updates into the run."""
        return reduce(lambda product, edit: product * edit.at(update), self.learning_rate_edits, 1.0)

    @property
    def windows(self) -> tuple[SampleRange, ...]:
        """They are the ranges of samples that rollbacks have left out, in the order that this was decided in."""
        return tuple(range_ for rollback in self.rollbacks for range_ in rollback.skip)

    @property
    def skipped_samples(self) -> int:
        """It counts the samples that rollbacks leave out, all together; one that comes again in later epochs, where
        it is left out as well, counts once."""
        return sum(end - start for start, end in self.skips)

    def count(self, remedy: Remedy, since: int = 0) -> int:
        """It counts the rollbacks with this remedy whose attempt comes after `since`."""
        return sum(rollback.remedy is remedy and rollback.attempt > since for rollback in self.rollbacks)

    def vetoes_after(self, attempt: int) -> int:
        """It counts the updates withheld after this attempt, which must not lie more than `VETO_WINDOW` back."""
        return sum(veto > attempt for veto in self.vetoes)

    @cached_property
    def digest(self) -> int:
        """It returns 52 bits of a hash, equal in every process that has an equal state."""
        text = json.dumps(asdict(self), sort_keys=True, default=sorted)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 12


def fold(records: Iterable[Record]) -> RunHistory:
    """It returns the state that a ledger with these records leads to."""
    return reduce(RunHistory.after, records, RunHistory())


Change = Callable[[RunHistory, Record], dict[str, Any]]
"""What a record changes beside lineage and attempt: fields of `RunHistory`."""


def _nothing(state: RunHistory, record: Record) -> dict[str, Any]:
    return {}


def _began(state: RunHistory, record: Record) -> dict[str, Any]:
    """Records of earlier versions have no id."""
    run_id = str(record.fields.get("run_id", ""))
    new = (run_id,) if run_id and run_id not in state.run_ids else ()
    return {"finished": False, "stopped": "", "run_ids": state.run_ids + new}


def _veto(state: RunHistory, record: Record) -> dict[str, Any]:
    """A step that is judged again after a crash counts once."""
    attempts = {*state.vetoes, record.attempt}
    return {"vetoes": tuple(sorted(a for a in attempts if a > record.attempt - VETO_WINDOW))}


def _certified(state: RunHistory, record: Record) -> dict[str, Any]:
    tag = record.fields["tag"]
    if tag is None:
        return {"certified_step": max(state.certified_step, record.step - record.fields["horizon"])}
    return {
        "certified": state.certified | {tag},
        "certified_step": max(state.certified_step, _step(tag)),
    }


def _condemned(state: RunHistory, record: Record) -> dict[str, Any]:
    tag = record.fields["tag"]
    return {"certified": state.certified - {tag}, "condemned": state.condemned | {tag}}


def _quarantined(state: RunHistory, record: Record) -> dict[str, Any]:
    return {"certified": state.certified - {record.fields["tag"]}}


def _intent(state: RunHistory, record: Record) -> dict[str, Any]:
    """An intent is one more rollback; or the pending one, planned again because its target could not be loaded.

    The vetoes before it are paid for by its own budget: counted further, they would make rollbacks of single bad steps
    long after, and those of steps that are taken again would count twice.
    """
    rollback = Rollback.of(record)
    decided = len(state.rollbacks) - bool(state.pending)
    progress = max(state.certified_step, rollback.target_step)
    return {
        "rollbacks": (*state.rollbacks[:decided], rollback),
        "progress": (*state.progress[:decided], progress),
        "certified_step": progress,
        "pending": rollback,
        "skips": merge_ranges([*state.skips, *rollback.skip]),
        "vetoes": (),
    }


def _edit(state: RunHistory, record: Record) -> dict[str, Any]:
    """Edits from the same update on or later belong to what the rollback has undone, or were written twice."""
    edit = LearningRateEdit(**record.fields)
    earlier = tuple(other for other in state.learning_rate_edits if other.update < edit.update)
    return {"learning_rate_edits": (*earlier, edit)}


def _step(tag: str) -> int:
    parsed = Tag.parse(tag)
    return parsed.step if parsed else 0


_CHANGES: Mapping[Kind, Change] = {
    Kind.RUN_START: _began,
    Kind.RESUMED: _began,
    Kind.STOPPED: lambda state, record: {"stopped": record.fields["reason"]},
    Kind.SEALED: lambda state, record: {"sealed": state.sealed | {record.fields["tag"]}},
    Kind.REFUSED: lambda state, record: {"refused": state.refused | {record.fields["tag"]}},
    Kind.REBASELINE: lambda state, record: (
        {"declared_attempt": record.attempt} if record.fields["declared"] else {}
    ),
    Kind.HOST_SUSPECT: lambda state, record: {
        "suspected_hosts": tuple(sorted({*state.suspected_hosts, record.fields["host"]}))
    },
    Kind.VETO: _veto,
    Kind.CERTIFIED: _certified,
    Kind.CONDEMNED: _condemned,
    Kind.QUARANTINED: _quarantined,
    Kind.ROLLBACK_INTENT: _intent,
    Kind.LEARNING_RATE_EDIT: _edit,
    Kind.ROLLBACK_DONE: lambda state, record: {"pending": None},
    Kind.DONE: lambda state, record: {"finished": True},
}
