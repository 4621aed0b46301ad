"""Records of the ledger say what has been seen, decided and done in a run.

Every record names the step that it is about, that step's attempt and the lineage; the other fields go by kind:

    run_start            config_digest, layout, versions, host, run_id
    resumed              tag, run_id, converted: in what the layout differs, if it does
    converted            tag, source: the checkpoint and its layout, layout
    suspect              signals
    alarm                alarms (each a dict of `pretrain.step.Alarm`)
    host_suspect         rank, host: where a fault of memory was seen
    veto                 reason, draws [lo, hi)
    sealed               tag
    certified            tag (null: in host memory), horizon
    condemned            tag, reason
    quarantined          tag, reason
    refused              tag: the loss has settled higher after it, and it is never certified
    unproven             tag, reason: the run has ended before later steps could speak for it, and something does not
    left_alone           reason
    rollback_intent      target_step, target_tag (null: in host memory), remedy, onset, skip [[lo, hi), ...],
                         learning_rate_factor, learning_rate_until, reason
    learning_rate_edit   update, factor, return_updates, until
    rollback_done        seconds, tier (memory, disk), proof
    rebaseline           reason, declared: by other settings of a new session; else by the schedule
    calibrated           thresholds {signal: {direction: threshold}}
    preempted
    stopped              code, reason
    done

An intent is written before its deed. `alarm`, `veto` and `rollback_intent` are about the step that was judged;
`rollback_done` and `resumed` have the state that the run goes on from, with its new lineage if it has one.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from data_pipeline.parsing import parse_json, reason
from data_pipeline.shown import shown
from pretrain.step import TrainState

FORMAT = 1


class Kind(StrEnum):
    """It says what a record tells of."""

    RUN_START = "run_start"
    RESUMED = "resumed"
    CONVERTED = "converted"
    SUSPECT = "suspect"
    ALARM = "alarm"
    HOST_SUSPECT = "host_suspect"
    VETO = "veto"
    SEALED = "sealed"
    CERTIFIED = "certified"
    CONDEMNED = "condemned"
    QUARANTINED = "quarantined"
    REFUSED = "refused"
    UNPROVEN = "unproven"
    LEFT_ALONE = "left_alone"
    ROLLBACK_INTENT = "rollback_intent"
    LEARNING_RATE_EDIT = "learning_rate_edit"
    ROLLBACK_DONE = "rollback_done"
    REBASELINE = "rebaseline"
    CALIBRATED = "calibrated"
    PREEMPTED = "preempted"
    STOPPED = "stopped"
    DONE = "done"


@dataclass(frozen=True)
class Record:
    """A record tells one thing that has happened."""

    kind: Kind
    step: int
    attempt: int
    lineage: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else there is to say, by kind; JSON types. Floats may be anything: `float()` of what comes back is equal."""
    seq: int = 0
    """Place in the ledger, from 1; 0: not written yet."""
    time: str = ""
    """Wall time in UTC, ISO 8601, when it was written."""


def record(kind: Kind, state: TrainState, **fields: Any) -> Record:
    """It returns a record about the run as it is after `state.step` steps."""
    return Record(kind, state.step, state.attempt, state.lineage, fields)


def encode(record: Record, previous: str) -> bytes:
    """It returns the line of a record in the ledger; `previous` is the digest of the line before."""
    header = {
        "format": FORMAT,
        "seq": record.seq,
        "previous": previous,
        "time": record.time,
        "kind": record.kind,
        "step": record.step,
        "attempt": record.attempt,
        "lineage": record.lineage,
    }
    return json.dumps(plain({**record.fields, **header}), allow_nan=False).encode()


def decode(line: bytes) -> tuple[Record, str]:
    """It returns the record of a line, and the digest that it gives for the line before.

    Raises ValueError, with what is wrong.
    """
    fields = plain(parse_json(line))
    if not isinstance(fields, dict) or "format" not in fields:
        raise ValueError("not a record of a ledger")
    if (format_ := fields.pop("format")) != FORMAT:
        raise ValueError(
            f"format {shown(format_)}, of which this version of Surefoot, with format {FORMAT}, knows nothing"
        )
    try:
        kind = Kind(fields.pop("kind"))
        header = {name: _count(name, fields.pop(name)) for name in ("step", "attempt", "lineage", "seq")}
        time, previous = str(fields.pop("time")), str(fields.pop("previous"))
        datetime.fromisoformat(time).astimezone()  # as those who show it do
    except KeyError as error:
        raise ValueError(f"a record without {error}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"a record that cannot be: {reason(error)}") from None
    return Record(kind=kind, fields=fields, time=time, **header), previous


def _count(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{name} is {shown(value)}")
    return value


def plain(value: Any) -> Any:
    """It returns a value as JSON in UTF-8 can have it, which has no word for what is not finite, nor for the bytes of
    names that are none of UTF-8."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
