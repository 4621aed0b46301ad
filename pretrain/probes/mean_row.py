"""How far the mean row of the embedding table moves from step to step.

A vector that all rows take up changes the TEV of none by much while it is small, or while rows already share a long
one: TEV^2 grows by the square of what is added, and not at all where that points against what is shared. The mean row
moves at once. In healthy training it moves smoothly, by a tenth of a learning rate or so in an update.

D  hidden size
"""

from typing import Any

import torch
from torch import Tensor

from pretrain.probes.embedding import own_rows, rows_of
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep, observe_first_call


class MeanRowProbe(Probe):
    """`tev_shift`: root mean square of the mean row's change since the step before, of the input's table.

    Slots are the mean row. Data ranks share the rows of their tensor rank among them.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._table = dict(model.layers).get(0)
        self._own_rows = own_rows(model)
        self._sum_D = model.zeros(model.config.model.hidden_size)
        self._now_D: Tensor | None = None
        self._before_D: Tensor | None = None

    def due(self, occasion: ProbeStep) -> bool:
        return True

    def begin(self, occasion: ProbeStep) -> None:
        if self._table is not None:
            observe_first_call(self._table, self._look)

    def _look(self, *arguments: Tensor) -> None:
        rows = rows_of(self._table, self._model, *self._own_rows)
        self._sum_D = rows.sum(0, dtype=torch.float32).double()

    def local(self) -> Tensor:
        return self._sum_D / self._model.config.model.vocabulary_size

    def finish(self, slots: Tensor) -> Measures:
        self._now_D = slots
        if self._before_D is None:
            return Measures()
        change_D = slots - self._before_D
        return Measures({"tev_shift": change_D.square().mean().sqrt().item()})

    def after_update(self, learning_rate: float) -> None:
        self._before_D = self._now_D

    def forget(self) -> None:
        self._now_D = self._before_D = None

    def state_dict(self) -> dict[str, Any]:
        """The mean row of the last step, so that a resumed run misses no change."""
        return {} if self._before_D is None else {"before": self._before_D}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """To be called after `forget`."""
        self._before_D = state.get("before")
