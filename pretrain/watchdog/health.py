"""A candidate has proven healthy by steps without a suspicion, and a loss that has not moved up for good."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from pretrain.watchdog.robust import error_of_difference, median, sigma_of

LEVEL_SIGMAS = 4.0
"""By how many standard errors the median loss may rise across a candidate."""
LEVEL_FLOOR = 2e-3
"""Rise of the median that is never held against it, relative."""


class Health:
    """It follows the losses of accepted steps and the last unhealthy step of a run."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self._unhealthy = 0
        self._losses: deque[tuple[int, float]] = deque(maxlen=2 * horizon)

    def note(self, step: int, loss: float, *, healthy: bool) -> None:
        """Take note of a step that was looked at. Of an unhealthy one only its number counts."""
        if healthy:
            self._losses.append((step, loss))
        else:
            self._unhealthy = step

    def forget_losses(self) -> None:
        """Hold against nothing what the loss was so far: it is about to change on purpose."""
        self._losses.clear()

    def proven(self, candidate: int, step: int) -> bool:
        """It says whether a candidate of step `candidate` has had its horizon of healthy steps up to `step`."""
        return step - max(candidate, self._unhealthy) >= self.horizon

    def damaged(self, candidate: int) -> bool:
        """It says whether the loss has settled higher after the candidate than it was before: small, permanent harm
        that is too slow for an alarm. A falling loss hides as much as it falls."""
        before = np.array([loss for step, loss in self._losses if step <= candidate])
        after = np.array([loss for step, loss in self._losses if step > candidate])
        if min(len(before), len(after)) < max(self.horizon // 2, 1):
            return False
        level = median(before)
        error = error_of_difference(sigma_of(before - level), len(before), len(after))
        return median(after) > level + LEVEL_SIGMAS * error + LEVEL_FLOOR * abs(level)

    def state_dict(self) -> dict[str, Any]:
        """It returns what goes into checkpoints, JSON-able."""
        return {"unhealthy": self._unhealthy, "losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._unhealthy = state["unhealthy"]
        self._losses = deque(((step, loss) for step, loss in state["losses"]), maxlen=2 * self.horizon)
