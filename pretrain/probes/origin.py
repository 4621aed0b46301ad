"""This probe tells which rank, and which layer, gradients that are not finite come from.

Once gradients are averaged every data rank has them, and the backward pass has carried them to all layers before the
one that they began in. So each rank looks at its own, as they enter its sums, and the last layer that has some counts.
It looks where a full look was asked for, which is after a step that was suspect; it names parameters of this stage by
the layer that owns them.

W  all ranks, L  all layers
"""

from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep

RANK, RANKS, LAYER = (
    "nonfinite_gradient_rank",
    "nonfinite_gradient_ranks",
    "nonfinite_gradient_layer",
)
"""The first rank that has some, how many ranks have, and the index of the last layer that has."""


class GradientOriginProbe(Probe):
    """It has a slot a rank and a slot a layer, each with the number of parameters whose gradients are not finite."""

    of_gradients = True

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._owners = model.owners()
        self._handles: list[RemovableHandle] = []
        self._found: list[tuple[int, Tensor]] = []

    def due(self, step: ProbeStep) -> bool:
        return step.asked

    def begin(self, step: ProbeStep) -> None:
        self._found = []
        parameters = {id(p): p for _, layer in self._model.layers for p in layer.parameters()}
        self._handles = [
            parameter.register_hook(partial(self._look, self._owners[key]))
            for key, parameter in parameters.items()
        ]

    def _look(self, layer: int, gradient: Tensor) -> None:
        self._found.append((layer, torch.isfinite(gradient).all().logical_not()))

    def gradients_averaged(self) -> None:
        for handle in self._handles:
            handle.remove()

    def local(self) -> Tensor:
        mesh = self._model.mesh
        slots = self._model.zeros(mesh.world_size + len(self._model.names))
        if self._found:
            layers, bad = zip(*self._found, strict=True)
            counts = torch.stack(bad).to(slots.dtype)
            slots[mesh.rank] = counts.sum()
            slots.index_add_(0, mesh.world_size + torch.tensor(layers, device=slots.device), counts)
        return slots

    def finish(self, slots: Tensor) -> Measures:
        ranks, layers = (part.nonzero().view(-1).tolist() for part in slots.split(self._sizes))
        if not ranks:
            return Measures()
        found = {RANK: ranks[0], RANKS: len(ranks), LAYER: layers[-1]}
        return Measures({name: float(value) for name, value in found.items()})

    @property
    def _sizes(self) -> list[int]:
        return [self._model.mesh.world_size, len(self._model.names)]
