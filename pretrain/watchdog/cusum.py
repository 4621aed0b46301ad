"""The soft channel asks whether one signal has drifted away from what it used to be.

Each value is compared with the signal's own past (`baseline`), in robust standard deviations clipped at 4, and what
exceeds an allowance is summed up (CUSUM; Page 1954). A sum above the threshold is an alarm. Because of the clip it
takes several extreme values in a row: one batch, however bad, is never an alarm.

The baseline learns only while no sum has reached half its threshold, so trouble does not become the normal state
while it is suspected. Trouble that goes on for a whole window and is not remedied does: the signal is lost otherwise.

The threshold is a configured one at first, and is raised by `calibration` where the run's own residuals need it.
Those of an excursion that ended by itself count, however far it went; those that a rollback undid are undone with it.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pretrain.plan.arming import guard
from pretrain.watchdog.baseline import Baseline
from pretrain.watchdog.calibration import calibrated_threshold

CLIP = 4.0
_CALIBRATIONS = (128, 256, 512)
_CALIBRATE_EVERY = 1000
"""Healthy values between calibrations, and those before the first of these."""
_KEPT = 2048
"""Residuals that calibrations see."""


@dataclass(frozen=True)
class Direction:
    """A direction is a way in which a signal can go wrong."""

    kind: str
    """`high` or `low`."""
    sign: int
    allowance: float = 1.0
    """Robust standard deviations that do not count."""


HIGH = Direction("high", 1)
LOW = Direction("low", -1)


@dataclass(frozen=True)
class ChannelSettings:
    """They say how one signal is watched."""

    window: int
    """Accepted values in the baseline."""
    threshold: float
    """The least decision level."""
    directions: tuple[Direction, ...] = (HIGH,)
    floor: float = 2e-3
    """The least spread, in the units of the values."""
    stride: int = 1
    """Steps between two values that the baseline accepts, for a signal that is sometimes looked at more often."""
    uncertainty: float = 6.0
    """Added to the allowance, divided by the root of the values in the baseline: from a short one median, trend and
    spread are known only roughly, and their error must not add up."""

    @property
    def guard(self) -> int:
        """It returns by how many values the baseline is late."""
        return guard(self.stride)


@dataclass
class Drift:
    """It keeps one direction's sum."""

    threshold: float
    z: float = 0.0
    """The last value's distance from what was expected, clipped."""
    sum: float = 0.0
    onset: int = 0
    """The step after the last one with sum 0, or the first that was compared; 0 before that."""
    excursion: list[float] = field(default_factory=list)
    """What was added since then."""
    increments: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """What was added in excursions that are over: what is normal."""

    @property
    def alarming(self) -> bool:
        return self.sum > self.threshold

    @property
    def suspect(self) -> bool:
        return self.sum >= self.threshold / 2

    def add(self, step: int, z: float, allowance: float) -> None:
        """Take a value into the sum, which stays within three thresholds: it can recover."""
        self.onset = self.onset or step
        self.z = max(-CLIP, min(z, CLIP))
        increment = round(self.z - allowance, 3)
        self.sum = min(max(0.0, self.sum + increment), 3 * self.threshold)
        self.excursion.append(increment)
        if self.sum == 0:
            self.onset = step + 1
            self.increments.extend(self.excursion)
            self.excursion.clear()

    def reset(self) -> None:
        self.z, self.sum, self.onset = 0.0, 0.0, 0
        self.excursion.clear()

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "excursion": list(self.excursion), "increments": list(self.increments)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.excursion = list(state["excursion"])
        self.increments = deque(state["increments"], maxlen=_KEPT)


class Channel:
    """It has one signal's baseline and sums. It is deterministic; all of its state is in `state_dict`."""

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings
        self._baseline = Baseline(window=settings.window, guard=settings.guard, floor=settings.floor)
        self.drifts = {direction: Drift(settings.threshold) for direction in settings.directions}
        self._frozen = 0
        self._healthy = 0
        self._accepted = -settings.stride

    @property
    def armed(self) -> bool:
        """It says whether there is a baseline to compare with."""
        return self._baseline.count > 0

    @property
    def leading(self) -> tuple[Direction, Drift]:
        """It returns the direction with the larger sum."""
        return max(self.drifts.items(), key=lambda item: item[1].sum)

    @property
    def thresholds(self) -> dict[str, float]:
        """It returns the thresholds by direction."""
        return {direction.kind: drift.threshold for direction, drift in self.drifts.items()}

    def look(self, step: int, value: float) -> None:
        """Take in the signal's value at `step`."""
        if self.armed:
            self._compare(step, value)
        if self._frozen:
            if self._frozen > self._settings.window:
                self.rebaseline()
        elif step >= self._accepted + self._settings.stride:
            self._accepted = step
            self._baseline.accept(value)

    def rebaseline(self) -> None:
        """Forget what was expected: the signal has changed, or is about to. Thresholds stay."""
        self._baseline.restart()
        self._frozen = 0
        for drift in self.drifts.values():
            drift.reset()

    def _compare(self, step: int, value: float) -> None:
        slack = self._settings.uncertainty / math.sqrt(self._baseline.count)
        for direction, drift in self.drifts.items():
            drift.add(step, self._baseline.excess(value, direction.sign), direction.allowance + slack)
        lengths = [len(drift.excursion) for drift in self.drifts.values() if drift.suspect]
        if not lengths:
            self._frozen = 0
            self._count_healthy(step)
            return
        if not self._frozen:
            # Those that the suspicion is about wait in the guard.
            self._baseline.withdraw(max(lengths) - 1)
        self._frozen += 1

    def _count_healthy(self, step: int) -> None:
        self._healthy += 1
        if self._healthy % _CALIBRATE_EVERY == 0 or self._healthy in _CALIBRATIONS:
            for drift in self.drifts.values():
                self._calibrate(drift, step)

    def _calibrate(self, drift: Drift, step: int) -> None:
        """A threshold falls by half the way only: two thousand residuals give one that scatters by a tenth."""
        new = calibrated_threshold(drift.increments, seed=step, least=self._settings.threshold)
        drift.threshold = round(max(new, (new + drift.threshold) / 2), 3)

    def state_dict(self) -> dict[str, Any]:
        """It returns plain numbers, lists and dictionaries; the lists of drifts are in the order of the directions."""
        return {
            "baseline": self._baseline.state_dict(),
            "drifts": [drift.state_dict() for drift in self.drifts.values()],
            "frozen": self._frozen,
            "healthy": self._healthy,
            "accepted": self._accepted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._baseline.load_state_dict(state["baseline"])
        for drift, saved in zip(self.drifts.values(), state["drifts"], strict=True):
            drift.load_state_dict(saved)
        self._frozen, self._healthy, self._accepted = state["frozen"], state["healthy"], state["accepted"]
