"""Token embedding variability (TEV) of a table, over the real vocabulary.

V  real vocabulary, W  rows of the padded one on a tensor rank, D  hidden size
"""

import torch
from torch import Tensor

from parallel.statistics import row_std
from pretrain.probes.probe import Measures, Occasion, Probe, ProbedModel, observe_first_call


class EmbeddingProbe(Probe):
    """Mean, standard deviation and maximum at every step; 99th percentile and histogram on dense steps.

    Data ranks share the rows of their tensor rank among them. Slots of an ordinary step are the sum, the sum of
    squares, and a maximum for each pair of tensor and data rank; of a dense one the TEV of every token.
    """

    def __init__(self, model: ProbedModel, *, layer: int, prefix: str) -> None:
        """`layer` is the index of the layer whose `weight` is the table; measures are called `prefix_mean` etc."""
        self._model = model
        self._table = dict(model.layers).get(layer)
        self._prefix = prefix
        self._start, self._stop = own_rows(model)
        self._tev = torch.empty(0, device=model.mesh.device)

    def due(self, occasion: Occasion) -> bool:
        return True

    def begin(self, occasion: Occasion) -> None:
        self._occasion = occasion
        if self._table is not None:
            observe_first_call(self._table, self._look)

    def _look(self, *arguments: Tensor) -> None:
        assert self._table is not None
        weight_WD = self._table.weight
        assert isinstance(weight_WD, Tensor)
        offset = self._model.mesh.tensor.rank * weight_WD.shape[0]
        self._tev = row_std(weight_WD.detach()[self._start - offset : self._stop - offset])

    def local(self) -> Tensor:
        mesh, tev = self._model.mesh, self._tev.double()
        if self._occasion.dense:
            slots = self._model.zeros(self._model.config.model.vocabulary_size)
            slots[self._start : self._start + len(tev)] = tev
            return slots
        slots = self._model.zeros(2 + mesh.tensor.size * mesh.data.size)
        if len(tev):
            slots[0], slots[1] = tev.sum(), tev.square().sum()
            slots[2 + mesh.stage.rank] = tev.max()
        return slots

    def finish(self, slots: Tensor) -> Measures:
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


def own_rows(model: ProbedModel) -> tuple[int, int]:
    """The real tokens [start, stop) that this rank looks at: its share of those that its tensor rank holds."""
    config, mesh = model.config.model, model.mesh
    width = config.padded_vocabulary_size // mesh.tensor.size
    first = min(width * mesh.tensor.rank, config.vocabulary_size)
    last = min(first + width, config.vocabulary_size)
    count, share = last - first, mesh.data
    return first + count * share.rank // share.size, first + count * (share.rank + 1) // share.size
