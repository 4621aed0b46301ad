"""A signal that stands still to the last bit, step after step, is that of a run that learns nothing.

Batches differ, and so do their losses and gradients, in every step of a run that is alive. Where they do not, all
predictions are the same or perfect (a data set of one token), the weights do not move (every update is lost in
rounding) or no gradient reaches them. That is no drift, and nothing that going back would help: it is told, and what
stands still is not certified.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pretrain.step import Alarm, StepReport

STANDSTILL = "still"
"""Kind of these alarms."""
STEPS = 16
"""Values that are equal to the bit, one after the other, to make an alarm."""
MOVES = "update_rms"
"""How far the weights of the model, or with `/LAYER` of a layer, have moved: on steps that measure it."""


@dataclass(frozen=True)
class Stretch:
    """It is a stretch of equal values of one signal."""

    value: float
    since: int
    """Step of the first."""
    count: int = 1


@dataclass(frozen=True)
class Standstill:
    """It has the last stretch of each signal; it goes into checkpoints, and back with them."""

    stretches: Mapping[str, Stretch] = field(default_factory=dict)

    def after(self, report: StepReport) -> "Standstill":
        """It returns the stretches with one more step."""
        stretches = dict(self.stretches)
        for name, value in _signals(report):
            last = stretches.get(name)
            same = last is not None and last.value == value
            count, since = (last.count + 1, last.since) if last and same else (1, report.step)
            stretches[name] = Stretch(value, since, count)
        return Standstill(stretches)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """They are of the signals that stand still."""
        return tuple(
            Alarm(name, STANDSTILL, one.since, one.value, one.value)
            for name, one in self.stretches.items()
            if one.count >= STEPS
        )

    def state_dict(self) -> dict[str, list[float]]:
        """It returns what goes into checkpoints, JSON-able."""
        return {name: [one.value, one.since, one.count] for name, one in self.stretches.items()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Iterable[Any]]) -> "Standstill":
        return cls({name: Stretch(*fields) for name, fields in state.items()})


def _signals(report: StepReport) -> Iterator[tuple[str, float]]:
    """It yields what must not stand still, of a step whose numbers are finite; weights may, at a learning rate of 0."""
    if report.finite:
        yield "loss", report.loss
        yield "gradient_norm", report.gradient_norm
        moves = report.measures.items() if report.learning_rate else ()
        yield from ((name, value) for name, value in moves if name.partition("/")[0] == MOVES)
