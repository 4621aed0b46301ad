"""This probe measures how far the mean row of a table of embeddings moves from step to step.

A vector that all rows take up changes the TEV of none by much while it is small, or while rows already share a long
one: TEV^2 grows by the square of what is added, and not at all where that points against what is shared. The mean row
moves at once. In healthy training it moves smoothly, by a tenth of a learning rate or so in an update.

D  hidden size
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pretrain.probes.probe import Measures, Probe, ProbeStep
from pretrain.probes.table import LocalTable


class MeanRowProbe(Probe):
    """`prefix_shift` is the root mean square of the mean row's change since the step before.

    The slots are the mean row. Data ranks share the rows of their tensor rank among them.
    """

    def __init__(self, table: LocalTable) -> None:
        """Measures are called after what the outline calls those of the table."""
        self._table = table
        self._measure = f"{table.size.measures}_shift"
        # Checkpoints have called it so since there was but one table.
        self._key = "shift" if table.size.measures == "tev" else self._measure
        self._sum_D = table.model.zeros(table.size.columns)
        self._now_D: Tensor | None = None
        self._before_D: Tensor | None = None

    def due(self, step: ProbeStep) -> bool:
        return True

    def begin(self, step: ProbeStep) -> None:
        self._table.observe(self._look)

    def _look(self, *arguments: object) -> None:
        self._sum_D = self._table.weights(*self._table.own).sum(0, dtype=torch.float32).double()

    def local(self) -> Tensor:
        return self._sum_D / self._table.size.rows

    def finish(self, slots: Tensor) -> Measures:
        self._now_D = slots
        if self._before_D is None:
            return Measures()
        change_D = slots - self._before_D
        return Measures({self._measure: change_D.square().mean().sqrt().item()})

    def after_update(self, learning_rate: float) -> None:
        self._before_D = self._now_D

    def reset(self) -> None:
        self._now_D = self._before_D = None

    def state_dict(self) -> dict[str, Any]:
        """It returns the mean row of the last step, so that a resumed run misses no change."""
        return {self._key: {} if self._before_D is None else {"before": self._before_D}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._before_D = state.get(self._key, {}).get("before")
