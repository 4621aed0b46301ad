"""Token embedding variability (TEV) of a table, over the real vocabulary.

V  real vocabulary, W  rows of the padded one on a tensor rank, D  hidden size
"""

import torch
from torch import Tensor, nn

from parallel.statistics import row_moments
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep, observe_first_call
from pretrain.probes.row_bound import RowBound, row_bound_applies


class EmbeddingProbe(Probe):
    """Mean, standard deviation and maximum at every step; 99th percentile and histogram on dense steps.

    Data ranks share the rows of their tensor rank among them. Slots of an ordinary step are the sum, the sum of
    squares, and a maximum for each pair of tensor and data rank; of a dense one the TEV of every token.

    From the second step on, where AdamW's reach is known, also how much of it rows have used (`RowReach`), in one
    more slot for each pair of ranks; where it is more than there is on one data rank alone, also which rank that is.
    Each data rank looks at all rows of its own copy then.
    """

    def __init__(self, model: ProbedModel, *, layer: int, prefix: str) -> None:
        """`layer` is the index of the layer whose `weight` is the table; measures are called `prefix_mean` etc."""
        self._model = model
        self._table = dict(model.layers).get(layer)
        self._first_rank = self._pairs * (model.mesh.pipeline.size - 1) if layer else 0
        self._prefix = prefix
        self._reach = RowBound(model.config) if row_bound_applies(model.config) else None
        self._start, self._stop = own_rows(model)
        self._rows = real_rows(model) if self._reach else (self._start, self._stop)
        self._tev = torch.empty(0, device=model.mesh.device)

    def due(self, occasion: ProbeStep) -> bool:
        return True

    def begin(self, occasion: ProbeStep) -> None:
        self._occasion = occasion
        if self._table is not None:
            observe_first_call(self._table, self._look)

    def _look(self, *arguments: Tensor) -> None:
        first, last = self._rows
        mean, std = row_moments(rows_of(self._table, self._model, first, last))
        self._tev = std[self._start - first : self._stop - first]
        if self._reach:
            self._reach.look(mean, std)

    def local(self) -> Tensor:
        tev = self._tev.double()
        return torch.cat((self._table_slots(tev) if self._occasion.dense else self._sums(tev), self._moved()))

    def _table_slots(self, tev: Tensor) -> Tensor:
        slots = self._model.zeros(self._model.config.model.vocabulary_size)
        slots[self._start : self._start + len(tev)] = tev
        return slots

    def _sums(self, tev: Tensor) -> Tensor:
        slots = self._model.zeros(2 + self._pairs)
        if len(tev):
            slots[0], slots[1] = tev.sum(), tev.square().sum()
            slots[2 + self._model.mesh.stage.rank] = tev.max()
        return slots

    def _moved(self) -> Tensor:
        """Slots of the reach; none on a step without one before."""
        if not (self._reach and self._reach.known):
            return self._model.zeros(0)
        slots = self._model.zeros(self._pairs)
        slots[self._model.mesh.stage.rank] = self._reach.ratio() if self._table is not None else 0.0
        return slots

    @property
    def _pairs(self) -> int:
        """Pairs of tensor and data rank."""
        return self._model.mesh.tensor.size * self._model.mesh.data.size

    def finish(self, slots: Tensor) -> Measures:
        if not (self._reach and self._reach.known):
            return self._finish(slots)
        found, moved = self._finish(slots[: -self._pairs]), slots[-self._pairs :]
        reach = {"reach": moved.max().item(), **self._beyond(moved > 1)}
        return Measures({**found.scalars, **self._measures(**reach).scalars}, found.histograms)

    def _beyond(self, beyond: Tensor) -> dict[str, float]:
        """The rank whose copy alone has moved too far; none where others have too, who may have it from anywhere."""
        tensor_ranks = self._model.mesh.tensor.size
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

    def forget(self) -> None:
        if self._reach:
            self._reach.forget()

    def _finish(self, slots: Tensor) -> Measures:
        if self._occasion.dense:
            return self._finish_table(slots)
        mean, square = (slots[:2] / self._model.config.model.vocabulary_size).tolist()
        return self._measures(mean=mean, std=max(square - mean**2, 0.0) ** 0.5, max=slots[2:].max().item())

    def _finish_table(self, tev_V: Tensor) -> Measures:
        scalars = self._measures(
            mean=tev_V.mean().item(),
            std=tev_V.std(correction=0).item(),
            p99=tev_V.quantile(0.99).item(),
            max=tev_V.max().item(),
        ).scalars
        tag = f"embedding/{self._prefix}"
        return Measures(scalars, {tag: tev_V.tolist()} if self._occasion.histograms else {})

    def _measures(self, **values: float) -> Measures:
        return Measures({f"{self._prefix}_{name}": value for name, value in values.items()})


def rows_of(table: nn.Module | None, model: ProbedModel, first: int, last: int) -> Tensor:
    """Those of the tokens [first, last), all of which this tensor rank holds; (last - first, D)."""
    assert table is not None
    weight_WD = table.weight
    assert isinstance(weight_WD, Tensor)
    offset = model.mesh.tensor.rank * weight_WD.shape[0]
    return weight_WD.detach()[first - offset : last - offset]


def real_rows(model: ProbedModel) -> tuple[int, int]:
    """The real tokens [start, stop) that this tensor rank holds."""
    config, mesh = model.config.model, model.mesh
    width = config.padded_vocabulary_size // mesh.tensor.size
    first = min(width * mesh.tensor.rank, config.vocabulary_size)
    return first, min(first + width, config.vocabulary_size)


def own_rows(model: ProbedModel) -> tuple[int, int]:
    """Those of them that this data rank speaks for."""
    (first, last), share = real_rows(model), model.mesh.data
    count = last - first
    return first + count * share.rank // share.size, first + count * (share.rank + 1) // share.size
