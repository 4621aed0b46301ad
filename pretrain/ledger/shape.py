"""What a record of the ledger must hold, by kind: whoever reads it then finds what it looks for."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model

from data_pipeline.reading.ranges import merge_ranges
from pretrain.ledger.record import Kind, Record
from pretrain.step import Remedy

Whole = Annotated[int, Field(gt=-(2**53), lt=2**53)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = float | Literal["nan", "inf", "-inf"]
"""JSON has no word of its own for what is not finite."""
Ranges = Annotated[list[list[Count]], AfterValidator(merge_ranges)]


def shape(*, whole: bool = False, **fields: Any) -> type[BaseModel]:
    """It makes a model of fields: a type, or a type and a default. Unless they are the `whole` of it, others may stand
    beside them, as later versions have more to say."""
    pairs: dict[str, Any] = {
        name: kind if isinstance(kind, tuple) else (kind, ...) for name, kind in fields.items()
    }
    config = ConfigDict(extra="forbid" if whole else "allow", strict=True)
    made: type[BaseModel] = create_model("Shape", __config__=config, **pairs)
    return made


ALARM = shape(whole=True, signal=str, kind=str, onset=Whole, value=Number, threshold=Number)
EMPTY = shape()

SHAPES: Mapping[Kind, type[BaseModel]] = {
    Kind.RUN_START: shape(host=str, layout=str | dict[str, Any]),
    Kind.RESUMED: shape(tag=str, converted=(str, "")),
    Kind.CONVERTED: shape(tag=str, source=str, layout=str),
    Kind.SUSPECT: shape(signals=list[str]),
    Kind.ALARM: shape(alarms=list[ALARM]),  # type: ignore[valid-type]
    Kind.HOST_SUSPECT: shape(rank=Count, host=str),
    Kind.VETO: shape(reason=str),
    Kind.SEALED: shape(tag=str),
    Kind.CERTIFIED: shape(tag=str | None, horizon=Count),
    Kind.CONDEMNED: shape(tag=str, reason=str),
    Kind.QUARANTINED: shape(tag=str, reason=str),
    Kind.REFUSED: shape(tag=str),
    Kind.UNPROVEN: shape(tag=str, reason=str),
    Kind.LEFT_ALONE: shape(reason=str),
    Kind.ROLLBACK_INTENT: shape(
        whole=True,
        remedy=Annotated[Remedy, Field(strict=False)],  # it comes as a word
        onset=Whole,
        target_step=Count,
        target_tag=str | None,
        skip=Ranges,
        learning_rate_factor=float,
        reason=str,
        learning_rate_until=(Count, 0),
    ),
    Kind.LEARNING_RATE_EDIT: shape(
        whole=True,
        update=Count,
        factor=float,
        return_updates=Annotated[int, Field(gt=0, lt=2**53)],
        until=(Count, 0),
    ),
    Kind.ROLLBACK_DONE: shape(tier=str, seconds=float),
    Kind.REBASELINE: shape(reason=str, declared=bool),
    Kind.CALIBRATED: shape(thresholds=dict[str, dict[str, float]]),
    Kind.PREEMPTED: EMPTY,
    Kind.STOPPED: shape(code=Whole, reason=str),
    Kind.DONE: EMPTY,
}
"""Every kind is listed."""


def check_fields(record: Record) -> None:
    """It raises ValidationError, which is a ValueError, for a record without what its kind must hold."""
    SHAPES[record.kind].model_validate(record.fields)
