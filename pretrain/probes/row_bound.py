"""A bound tells whether rows of a table have moved farther than their optimizer can have moved them.

The standard deviation s of a row's entries is 1-Lipschitz in the root mean square of their changes. An update adds
to each weight w at most lr B, its `update_bound`, beside the decay (1 - lr wd) w, so

    |s(t) - |1 - lr wd| s(t-1)|  <=  lr B + what rounding adds.

More cannot be the optimizer's doing: it is a fault in memory, a bad load or a foreign write.

W  rows of a table on this rank
"""

import torch
from torch import Tensor

from pretrain.config.run import RunConfig

ROUNDING = {"fp32": 2**-16, "bf16": 2**-9 + 2**-15}
"""By how much s may be off, relative to the row's root mean square: half a unit in the last place of the table's
dtype, and digits that fp32 loses in sums over a row."""
SLACK = 1e-3
"""Of B, for an optimizer's state that is kept in fp32."""
TELLABLE = 1e16
"""Where the optimizer may have taken weights beyond it, sums of their squares are more than fp32 can hold: s is then no
number, and nothing can be told of the row. That is a divergence and no fault of memory; the loss shows it."""


class RowBound:
    """It compares the rows of a table with those of the step before."""

    def __init__(self, config: RunConfig) -> None:
        optimizer = config.optimizer
        assert optimizer.update_bound is not None, "asked of row_bound_applies"
        self._bound = optimizer.update_bound * (1 + SLACK)
        self._weight_decay = optimizer.weight_decay
        self._rounding = ROUNDING[config.precision.dtype]
        self._now: tuple[Tensor, Tensor] | None = None
        self._before: tuple[Tensor, Tensor] | None = None
        self._learning_rate = 0.0
        self.known = False
        """Whether the step before is known: the same on all ranks, also those that have no rows."""

    def look(self, mean_W: Tensor, std_W: Tensor) -> None:
        """Take the rows of this step."""
        self._now = std_W, torch.hypot(mean_W, std_W)

    def ratio(self) -> Tensor | float:
        """It is the largest change of a row relative to what is possible; inf where not finite, 0 without rows, and of
        rows that are beyond `TELLABLE`."""
        if self._now is None or self._before is None or not len(self._now[0]):
            return 0.0
        (std, rms), (std_before, rms_before) = self._now, self._before
        kept = abs(1 - self._learning_rate * self._weight_decay)
        allowed = self._learning_rate * self._bound + self._rounding * (rms + kept * rms_before)
        ratio = (std - kept * std_before).abs() / allowed.clamp(min=torch.finfo(allowed.dtype).tiny)
        ratio = ratio.nan_to_num(nan=torch.inf, posinf=torch.inf)
        reachable = self._learning_rate * self._bound + kept * rms_before
        return ratio.where(reachable < TELLABLE, 0.0).max()

    def after_update(self, learning_rate: float) -> None:
        """The rows of this step have been updated; with a rate of 0 they stay as they are."""
        self._before, self._learning_rate, self.known = self._now, learning_rate, True

    def reset(self) -> None:
        """The rows have been replaced."""
        self._now = self._before = None
        self.known = False


def row_bound_applies(config: RunConfig) -> bool:
    """It says whether the bound is asked for, and there is one for this optimizer with these settings."""
    return config.watchdog.reach and config.optimizer.update_bound is not None
