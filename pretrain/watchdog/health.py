"""A candidate has proven healthy by steps without a suspicion, and a loss that has not moved up for good."""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from pretrain.watchdog.robust import error_of_difference, median, sigma_of

LEVEL_SIGMAS = 4.0
"""By how many standard errors the median loss may rise across a candidate."""
LEVEL_FLOOR = 2e-3
"""Rise of the median that is never held against it, relative."""
LAST = 3
"""Losses before the end of a run that are held against those before them."""
VALIDATION_RISE = 0.02
"""By how much the validation loss may rise from one to the next, relative."""
VALIDATIONS = 4
"""Validation losses that are remembered: three rises in a row are told."""


class Health:
    """It follows the losses of accepted steps and the last unhealthy step of a run."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self._unhealthy = 0
        self._losses: deque[tuple[int, float]] = deque(maxlen=2 * horizon)
        self._validations: deque[tuple[int, float]] = deque(maxlen=VALIDATIONS)

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
        before = [loss for step, loss in self._losses if step <= candidate]
        after = [loss for step, loss in self._losses if step > candidate]
        enough = min(len(before), len(after)) >= max(self.horizon // 2, 1)
        return enough and _higher(before, after)

    def doubt(self, step: int) -> str:
        """It says what speaks against the last checkpoint of a run, that of `step`, which no later step speaks for;
        nothing if all is well.

        The last steps themselves must have been healthy, their losses no higher than those before, and neither must
        the validation loss have risen.
        """
        if self._unhealthy >= step:
            return "the last step was not healthy"
        losses = [loss for _, loss in self._losses]
        before, last = losses[:-LAST], losses[-LAST:]
        if len(before) >= max(self.horizon // 2, 1) and _higher(before, last):
            return f"the loss of the last {LAST} steps is higher than before"
        *_, (earlier, old), (_, new) = [(0, np.inf), (0, np.inf), *self._validations]
        if not new <= old + VALIDATION_RISE * abs(old):
            return f"the validation loss has risen from {old:.4f} at step {earlier:,} to {new:.4f}"
        return ""

    def note_validation(self, step: int, loss: float) -> str:
        """Take note of a validation loss; it returns what there is to tell of it, nothing as a rule.

        That the loss on other data rises is no trouble of the training: it is told, and nothing is done about it.
        """
        self._validations.append((step, loss))
        losses = [loss for _, loss in self._validations]
        far = losses[-1] > losses[0] + VALIDATION_RISE * abs(losses[0])
        if len(losses) < VALIDATIONS or not far or any(new <= old for old, new in pairwise(losses)):
            return ""
        return (
            f"the validation loss has risen {VALIDATIONS - 1} times in a row, from {losses[0]:.4f} to "
            f"{losses[-1]:.4f}: training data is learnt by heart, or is unlike that for validation"
        )

    def state_dict(self) -> dict[str, Any]:
        """It returns what goes into checkpoints, JSON-able."""
        return {
            "unhealthy": self._unhealthy,
            "losses": list(self._losses),
            "validations": list(self._validations),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._unhealthy = state["unhealthy"]
        self._losses = deque(((step, loss) for step, loss in state["losses"]), maxlen=2 * self.horizon)
        validations = state.get("validations", ())
        self._validations = deque(((step, loss) for step, loss in validations), maxlen=VALIDATIONS)


def _higher(before: Sequence[float], after: Sequence[float]) -> bool:
    """It says whether the second losses lie clearly higher than the first: by their medians."""
    values = np.array(before)
    level = median(values)
    error = error_of_difference(sigma_of(values - level), len(before), len(after))
    return median(np.array(after)) > level + LEVEL_SIGMAS * error + LEVEL_FLOOR * abs(level)
