"""The parts of a tied table's gradient lie on different pipeline stages; this module brings them together.

W  rows of a table on this rank, D  hidden size, N  rows that count
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from data_pipeline.batches import Batch
from pretrain.models.outline import Outline
from pretrain.probes.probe import ProbedModel, ProbeStep
from pretrain.probes.table import weight_of


@dataclass(frozen=True)
class Part:
    """It describes one stage's part of a tied table's gradient."""

    layer: int
    """A layer on that stage that uses the table."""
    stage: int
    inputs: tuple[int, ...] | None
    """Which of a batch's inputs have the ids of all rows that can have a gradient there; none: any row can."""


@dataclass(frozen=True)
class Pair:
    """It has two parts of one table's gradient, the first on the earlier stage."""

    owner: int
    """The layer that the table belongs to."""
    first: Part
    second: Part


class TiedGradients:
    """It takes the inner products of the parts of a tied table's gradient, which lie on different pipeline stages.

    The table's gradient on a micro-batch is e + h, for example e from the embedding on the first stage and h from the
    head on the last, and |e + h|^2 = |e|^2 + |h|^2 + 2 <e, h>. Only rows of tokens that occur in the micro-batch count,
    for the others e is zero. The earlier stage sends them over the control group, in one message a step.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        stage = model.mesh.pipeline.rank
        self._pairs = [pair for pair in pairs_of(model) if stage in (pair.first.stage, pair.second.stage)]
        self._rows: dict[Pair, list[Tensor]] = {}

    def begin(self, step: ProbeStep) -> list[RemovableHandle]:
        """Look at the gradients of the micro-batches to come, until the handles are removed."""
        self._step = step
        self._rows = {pair: [] for pair in self._pairs}
        return [
            weight_of(self._model.local[self._mine(pair).layer]).register_hook(partial(self._look, pair))
            for pair in self._pairs
        ]

    def _mine(self, pair: Pair) -> Part:
        return pair.first if pair.first.stage == self._model.mesh.pipeline.rank else pair.second

    def _look(self, pair: Pair, gradient_WD: Tensor) -> None:
        rows = self._rows[pair]
        own_N = self._common_rows(pair, self._step.batches[len(rows)], len(gradient_WD))
        rows.append(
            (gradient_WD if own_N is None else gradient_WD[own_N.to(gradient_WD.device)]).float().cpu()
        )

    def _common_rows(self, pair: Pair, batch: Batch, count: int) -> Tensor | None:
        """It returns those of the `count` rows on this rank where both parts can have a gradient, (N,); none: all."""
        supports = [
            torch.cat([batch.inputs[number].flatten() for number in part.inputs]).unique()
            for part in (pair.first, pair.second)
            if part.inputs is not None
        ]
        if not supports:
            return None
        ids = supports[0] if len(supports) == 1 else supports[0][torch.isin(*supports)]
        ids = ids - self._offset(pair.owner, count)
        return ids[(ids >= 0) & (ids < count)]

    def _offset(self, owner: int, count: int) -> int:
        """It returns the first row that this tensor rank holds."""
        (weight,) = (p for p in self._model.outline.layers[owner].parameters if p.name == "weight")
        return 0 if weight.sharded is None else self._model.mesh.tensor.rank * count

    def products(self) -> Iterator[tuple[int, Tensor]]:
        """It yields each pair's owner and sum of <e, h> over micro-batches, on the later of its stages alone.

        Pairs come in the same order on all ranks, so that no two wait for each other.
        """
        mesh = self._model.mesh
        for pair, parts in self._rows.items():
            rows_ND = torch.cat(parts)
            if self._mine(pair) is pair.first:
                dist.send(rows_ND, mesh.pipeline.ranks[pair.second.stage], group=mesh.pipeline_control)
                continue
            theirs_ND = torch.empty_like(rows_ND)
            dist.recv(theirs_ND, mesh.pipeline.ranks[pair.first.stage], group=mesh.pipeline_control)
            yield pair.owner, (rows_ND * theirs_ND).sum(dim=-1).double().sum().to(mesh.device)


def pairs_of(model: ProbedModel) -> Iterator[Pair]:
    """It yields all pairs of stages that have parts of one table, the same on all ranks."""
    for owner in model.outline.tables:
        for first, second in combinations(parts_of(model, owner), 2):
            yield Pair(owner, first, second)


def parts_of(model: ProbedModel, owner: int) -> list[Part]:
    """It returns the parts of a table's gradient, by stage."""
    layers: dict[int, list[int]] = {}
    for layer in sorted(model.outline.sharers(owner)):
        layers.setdefault(model.stage(layer), []).append(layer)
    return [Part(on[0], stage, inputs_of(model.outline, on)) for stage, on in sorted(layers.items())]


def inputs_of(outline: Outline, layers: list[int]) -> tuple[int, ...] | None:
    """It tells which of a batch's inputs are looked up by these layers; none where one of them uses all rows."""
    tables = [outline.layers[layer].table for layer in layers]
    inputs = tuple(table.input for table in tables if table and table.input is not None)
    return inputs if len(inputs) == len(layers) else None
