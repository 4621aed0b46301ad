"""Rules by which other systems tell a bad loss, written anew from their descriptions, to compare with.

Each says, step by step, whether it would act on a loss: leave the update out, end the run, or compute it again. What
a rule does about it afterwards is not played here: the loss goes on as if nothing had been done.
"""

import math
from collections import deque
from typing import Protocol

import numpy as np


class Rule(Protocol):
    """Looks at every loss of one run."""

    name: str

    def look(self, step: int, loss: float) -> bool:
        """Whether the rule acts on this step's loss, which it then knows."""


class SixSigma:
    """Leave a step out unless its loss is at most the mean of the last 128 plus six standard deviations.

    Losses of steps left out count in the mean and deviation too (OLMo-core, Levanter and MaxText have variants).
    """

    name = "6 sigma of 128"

    def __init__(self, window: int = 128, sigmas: float = 6.0) -> None:
        self._sigmas = sigmas
        self._losses = np.zeros(window)
        self._seen = 0

    def look(self, step: int, loss: float) -> bool:
        window = self._losses
        limit = math.inf
        if self._seen >= len(window):
            mean = np.add.reduce(window) / len(window)
            centred = window - mean
            limit = mean + self._sigmas * math.sqrt(np.dot(centred, centred) / (len(window) - 1))
        window[self._seen % len(window)] = loss
        self._seen += 1
        return not loss <= limit


class TwiceTheMean:
    """End the run after a loss at least twice the mean of its window, five steps in a row (llm-foundry)."""

    name = "2 x mean, patience 4"

    def __init__(self, window: int = 100, factor: float = 2.0, patience: int = 4) -> None:
        self._factor, self._patience = factor, patience
        self._losses: deque[float] = deque(maxlen=window)
        self._row = 0

    def look(self, step: int, loss: float) -> bool:
        full = len(self._losses) == self._losses.maxlen
        high = full and loss >= self._factor * math.fsum(self._losses) / len(self._losses)
        self._row = self._row + 1 if high else 0
        self._losses.append(loss)
        return self._row > self._patience


class RelativeJump:
    """Leave a step out whose loss is 20 % above that of the last step that was not left out (FlagScale)."""

    name = "jump of 20 %"

    def __init__(self, tolerance: float = 0.2) -> None:
        self._tolerance = tolerance
        self._last: float | None = None

    def look(self, step: int, loss: float) -> bool:
        if self._last is not None and (loss - self._last) / self._last >= self._tolerance:
            return True
        self._last = loss
        return False


class TenTimesTheMaximum:
    """Compute a step again whose loss is not finite, or ten times the largest of the first hundred (Megatron-LM)."""

    name = "10 x maximum of 100"

    def __init__(self, samples: int = 100, factor: float = 10.0) -> None:
        self._samples, self._factor = samples, factor
        self._seen = 0
        self._largest = 0.0

    def look(self, step: int, loss: float) -> bool:
        if not math.isfinite(loss):
            return True
        if self._seen < self._samples:
            self._seen += 1
            self._largest = max(self._largest, loss)
            return False
        return loss >= self._factor * self._largest


RULES: tuple[type[Rule], ...] = (SixSigma, TwiceTheMean, RelativeJump, TenTimesTheMaximum)
