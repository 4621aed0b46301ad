"""This probe measures the token embedding variability (TEV) of a table, over the real vocabulary.

V  real vocabulary, W  rows of the padded one on a tensor rank, D  hidden size
"""

import torch
from torch import Tensor

from parallel.statistics import row_moments
from pretrain.probes.probe import Measures, Probe, ProbeStep
from pretrain.probes.table import LocalTable


class EmbeddingProbe(Probe):
    """It takes mean, standard deviation and maximum at every step, the 99th percentile and a histogram on full steps.

    Data ranks share the rows of their tensor rank among them. Slots of an ordinary step are the sum, the sum of
    squares, and a maximum for each pair of tensor and data rank; of a full one the TEV of every token.

    From the second step on, where a bound of the optimizer's updates is known, it also takes how much of it rows have
    used (`RowBound`), in one more slot for each pair of ranks; where that is more than there is on one data rank alone,
    also which rank that is. Each data rank looks at all rows of its own copy then.
    """

    def __init__(self, table: LocalTable) -> None:
        """Measures are called `prefix_mean` and so on, by what the outline calls those of the table."""
        self._table = table
        self._mesh = table.model.mesh
        self._first_rank = self._pairs * table.stage
        self._prefix = table.size.measures
        self._reach = table.model.row_bound() if table.model.row_bound else None
        self._rows = table.rows if self._reach else table.own
        self._tev = torch.empty(0, device=self._mesh.device)

    def due(self, step: ProbeStep) -> bool:
        return True

    def begin(self, step: ProbeStep) -> None:
        self._step = step
        self._table.observe(self._look)

    def _look(self, *arguments: object) -> None:
        (first, last), (start, stop) = self._rows, self._table.own
        mean, std = row_moments(self._table.weights(first, last))
        self._tev = std[start - first : stop - first]
        if self._reach:
            self._reach.look(mean, std)

    def local(self) -> Tensor:
        tev = self._tev.double()
        return torch.cat((self._table_slots(tev) if self._step.full else self._sums(tev), self._moved()))

    def _table_slots(self, tev: Tensor) -> Tensor:
        slots, start = self._table.model.zeros(self._table.size.rows), self._table.own[0]
        slots[start : start + len(tev)] = tev
        return slots

    def _sums(self, tev: Tensor) -> Tensor:
        slots = self._table.model.zeros(2 + self._pairs)
        if len(tev):
            slots[0], slots[1] = tev.sum(), tev.square().sum()
            slots[2 + self._mesh.stage.rank] = tev.max()
        return slots

    def _moved(self) -> Tensor:
        """It returns the slots of the reach; there are none on a step without one before."""
        if not (self._reach and self._reach.known):
            return self._table.model.zeros(0)
        slots = self._table.model.zeros(self._pairs)
        slots[self._mesh.stage.rank] = self._reach.ratio() if self._table.here else 0.0
        return slots

    @property
    def _pairs(self) -> int:
        """It counts the pairs of tensor and data rank."""
        return self._mesh.tensor.size * self._mesh.data.size

    def finish(self, slots: Tensor) -> Measures:
        if not (self._reach and self._reach.known):
            return self._finish(slots)
        found, moved = self._finish(slots[: -self._pairs]), slots[-self._pairs :]
        reach = {"reach": moved.max().item(), **self._beyond(moved > 1)}
        return Measures({**found.scalars, **self._measures(**reach).scalars}, found.histograms)

    def _beyond(self, beyond: Tensor) -> dict[str, float]:
        """It names the rank whose copy alone moved too far; none where others did, who may have it from anywhere."""
        tensor_ranks = self._mesh.tensor.size
        copies_RT = beyond.view(-1, tensor_ranks)
        for tensor, copies_R in enumerate(copies_RT.unbind(dim=1)):
            if copies_R.sum() == 1:
                return {
                    "reach_rank": self._first_rank + copies_R.int().argmax().item() * tensor_ranks + tensor
                }
        return {}

    def after_update(self, learning_rate: float) -> None:
        if self._reach:
            self._reach.after_update(learning_rate)

    def reset(self) -> None:
        if self._reach:
            self._reach.reset()

    def _finish(self, slots: Tensor) -> Measures:
        if self._step.full:
            return self._finish_table(slots)
        mean, square = (slots[:2] / self._table.size.rows).tolist()
        return self._measures(mean=mean, std=max(square - mean**2, 0.0) ** 0.5, max=slots[2:].max().item())

    def _finish_table(self, tev_V: Tensor) -> Measures:
        scalars = self._measures(
            mean=tev_V.mean().item(),
            std=tev_V.std(correction=0).item(),
            p99=tev_V.quantile(0.99).item(),
            max=tev_V.max().item(),
        ).scalars
        tag = f"embedding/{self._prefix}"
        return Measures(scalars, {tag: tev_V.tolist()} if self._step.histograms else {})

    def _measures(self, **values: float) -> Measures:
        return Measures({f"{self._prefix}_{name}": value for name, value in values.items()})
