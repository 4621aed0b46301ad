"""This module puts the records of a ledger into words."""

from collections.abc import Callable, Mapping
from typing import Any

from pretrain.ledger.history import LearningRateEdit, Rollback
from pretrain.ledger.record import Kind, Record
from pretrain.step import Alarm


def describe(record: Record) -> list[str]:
    """It tells what has happened; nothing for the ordinary life of checkpoints, of which there is too much to tell."""
    if record.kind is Kind.ALARM:
        return [f"alarm: {alarm(fields)}" for fields in record.fields["alarms"]]
    told = _WORDS.get(record.kind)
    return [told(record)] if told else []


def alarm(fields: Mapping[str, Any]) -> Alarm:
    """It returns an alarm as a record has it, where what is not finite is a word."""
    return Alarm(**{**fields, "value": float(fields["value"]), "threshold": float(fields["threshold"])})


def remedy_in_words(rollback: Rollback) -> str:
    """It tells what a rollback does beside going back."""
    samples = sum(end - start for start, end in rollback.skip)
    words = [f"skips {samples:,} samples" if samples else "the same samples again"]
    if rollback.learning_rate_factor != 1:
        words.append(f"learning rate x {rollback.learning_rate_factor:g}")
    return ", ".join(words)


def _run_start(record: Record) -> str:
    layout = record.fields["layout"]
    words = (
        " ".join(f"{key} {value}" for key, value in layout.items()) if isinstance(layout, Mapping) else layout
    )
    return f"run started on {record.fields['host']}: {words}"


def _resumed(record: Record) -> str:
    converted = record.fields.get("converted", "")
    layout = f", in another layout ({converted})" if converted else ""
    return f"resumed from {record.fields['tag']}{layout}"


def _rollback(record: Record) -> str:
    rollback = Rollback.of(record)
    where = f"rollback ({rollback.remedy}) to step {rollback.target_step:,}"
    return f"{where}, {remedy_in_words(rollback)}: {rollback.reason}"


def _edit(record: Record) -> str:
    edit = LearningRateEdit(**record.fields)
    held = f"from update {edit.update:,} on, held until {edit.until:,}"
    return f"learning rate x {edit.factor:g} {held}, back to the schedule's over {edit.return_updates:,}"


def _calibrated(record: Record) -> str:
    thresholds = [
        f"{signal} {direction} {threshold:.1f}"
        for signal, by_direction in record.fields["thresholds"].items()
        for direction, threshold in by_direction.items()
    ]
    return f"thresholds calibrated: {', '.join(thresholds)}"


def _done(record: Record) -> str:
    return (
        f"lineage {record.lineage} goes on from step {record.step:,}, restored from {record.fields['tier']} in "
        f"{record.fields['seconds']:.1f} s"
    )


_WORDS: Mapping[Kind, Callable[[Record], str]] = {
    Kind.RUN_START: _run_start,
    Kind.RESUMED: _resumed,
    Kind.CONVERTED: lambda record: (
        f"checkpoint {record.fields['tag']} converted to {record.fields['layout']}, from {record.fields['source']}"
    ),
    Kind.SUSPECT: lambda record: f"suspicion: {', '.join(map(str, record.fields['signals']))}",
    Kind.HOST_SUSPECT: lambda record: (
        f"a fault of memory on rank {record.fields['rank']}, host {record.fields['host']}"
    ),
    Kind.VETO: lambda record: f"update withheld: {record.fields['reason']}",
    Kind.CONDEMNED: lambda record: f"checkpoint {record.fields['tag']} condemned: {record.fields['reason']}",
    Kind.QUARANTINED: lambda record: (
        f"checkpoint {record.fields['tag']} set aside: {record.fields['reason']}"
    ),
    Kind.REFUSED: lambda record: (
        f"checkpoint {record.fields['tag']} not certified: the loss settled higher after it"
    ),
    Kind.UNPROVEN: lambda record: (
        f"checkpoint {record.fields['tag']} of the last step not certified: {record.fields['reason']}"
    ),
    Kind.LEFT_ALONE: lambda record: str(record.fields["reason"]),
    Kind.ROLLBACK_INTENT: _rollback,
    Kind.LEARNING_RATE_EDIT: _edit,
    Kind.ROLLBACK_DONE: _done,
    Kind.REBASELINE: lambda record: f"baselines begin anew: {record.fields['reason']}",
    Kind.CALIBRATED: _calibrated,
    Kind.PREEMPTED: lambda record: "stopped by a signal; the same command resumes the run",
    Kind.STOPPED: lambda record: f"stopped with code {record.fields['code']}: {record.fields['reason']}",
    Kind.DONE: lambda record: "finished",
}
