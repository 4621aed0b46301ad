"""The records about a step are frozen, made of plain numbers, and equal on all ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

ASCENDED_LOSS = "ascended_loss"
"""The measure of a sharpness-aware step that is the loss where the weights went; `loss` is that of the weights."""
ASCENT_GRADIENT_NORM = "ascent_gradient_norm"
"""Its measure that is the norm of the gradient which took them there; the update follows another."""


class Action(StrEnum):
    """An action says what to do with the update of a step."""

    PROCEED = "proceed"
    """Apply it."""
    VETO = "veto"
    """Withhold it: weights and optimizer stay as they are, the batch is spent."""
    ROLLBACK = "rollback"
    """Withhold it and return to an earlier checkpoint."""
    HALT = "halt"
    """Withhold it and end the run."""


@dataclass(frozen=True)
class Alarm:
    """An alarm tells why a step was found to be bad, with the figures that said so."""

    signal: str
    """Name of the measure, such as `loss` or `tev_mean`."""
    kind: str
    """`nonfinite`, `cap`, `reach`, `replicas`: facts of one step. `high`, `low`: a drift that built up. `still`: equal
    to the bit for many steps."""
    onset: int
    """First step of the trouble, as far as it is known."""
    value: float
    threshold: float
    """What `value` was compared with, in its own units: a cap, or for a drift the decision level of the sum."""

    def __str__(self) -> str:
        since = f"since step {self.onset:,}"
        match self.kind:
            case "high" | "low":
                return f"{self.signal} {self.kind} {since} (CUSUM {self.value:.1f}, threshold {self.threshold:.1f})"
            case "still":
                return f"{self.signal} has stood still at {self.value:g} {since}: nothing is learnt"
            case "nonfinite":
                return f"{self.signal} is not finite ({self.value:g})"
            case _:
                return f"{self.signal} {self.value:.6g}, over its limit of {self.threshold:.6g}, {since}"


class Remedy(StrEnum):
    """A remedy says how to go on after a rollback; each is a rung of the ladder."""

    SKIP = "skip"
    """Leave out the samples around the trouble."""
    REPLAY = "replay"
    """Use the same samples again: the fault was in memory, not in the data."""
    DEEPER = "deeper"
    """An older checkpoint, a wider skip, a lower learning rate."""
    DEEPEST = "deepest"
    """The oldest certified checkpoint, a still wider skip, a still lower learning rate."""


@dataclass(frozen=True)
class Verdict:
    """A verdict is what the judge decides about a step."""

    action: Action
    reason: str = ""
    alarms: tuple[Alarm, ...] = ()
    """What it rests on."""
    onset: int = 0
    """ROLLBACK: first step of the trouble; the checkpoint to return to is older."""
    remedy: Remedy | None = None
    """ROLLBACK: how to go on."""


@dataclass(frozen=True)
class StepReport:
    """A report holds the facts of an optimizer step, known between last backward and update, reduced over all ranks."""

    step: int
    """The step that this report is about, counted from 1."""
    loss: float
    """Mean loss per target over the global batch, in the units of the task."""
    gradient_norm: float
    """Global l2 norm of the averaged gradient that the update follows, before clipping."""
    learning_rate: float
    samples: int
    """Samples in the global batch."""
    tokens: int
    """Tokens in the global batch."""
    damaged: int = 0
    """Samples of the global batch that were damaged and masked."""
    passes: int = 1
    """Times that the step went through its batch, forward and backward."""
    finite: bool = True
    """Loss and gradient norm are finite on every rank, those of both passes where there are two."""
    interrupted: bool = False
    """A rank has been asked to stop."""
    unanimous: bool = True
    """All ranks came to this step with the same digest of what they had decided before it."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the probes that were due have found, by name; those of one layer are called `name/layer_07`."""
    histograms: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    """Distributions that were due, by tag in TensorBoard."""


@dataclass(frozen=True)
class TrainState:
    """It counts what a run has done; with weights, optimizer and data position that is the whole state."""

    step: int = 0
    """Optimizer steps taken, vetoed ones included: each has consumed one global batch."""
    updates: int = 0
    """Updates applied; the clock of the learning-rate schedule."""
    samples: int = 0
    tokens: int = 0
    damaged: int = 0
    """Damaged samples met so far."""
    validated: int = 0
    """The last step whose validation loss was taken."""
    best_step: int = 0
    """The validation with the lowest loss so far was that of this step, with `evaluation.keep_best`; 0: none yet."""
    best_loss: float = 0.0
    """Its loss."""
    stale: int = 0
    """Validations since."""
    vetoes_in_a_row: int = 0
    """Updates withheld since the last one that was applied."""
    attempt: int = 0
    """Optimizer steps computed, those that a rollback has undone included: the axis of the curves."""
    lineage: int = 1
    """It grows with every rollback."""

    def after(self, report: StepReport, verdict: Verdict) -> "TrainState":
        """It returns the state after a step with this report and verdict."""
        applied = verdict.action is Action.PROCEED
        return replace(
            self,
            step=self.step + 1,
            attempt=self.attempt + 1,
            updates=self.updates + applied,
            vetoes_in_a_row=0 if applied else self.vetoes_in_a_row + 1,
            samples=self.samples + report.samples,
            tokens=self.tokens + report.tokens,
            damaged=self.damaged + report.damaged,
        )

    def after_validation(self, loss: float, *, keep_best: bool) -> "TrainState":
        """It returns the state after a validation with this loss."""
        state = replace(self, validated=self.step)
        if not keep_best:
            return state
        if math.isfinite(loss) and (not self.best_step or loss < self.best_loss):
            return replace(state, best_step=self.step, best_loss=loss, stale=0)
        return replace(state, stale=self.stale + 1)
