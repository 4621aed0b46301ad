"""This probe measures the RMS of the change that an update makes to the weights."""

import torch
from torch import Tensor

from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep, by_layer, squares_by_layer


class UpdateProbe(Probe):
    """On full steps it measures the update that led to them: that of the step before.

    It is exact, on the fp32 weights that the optimizer moves: a copy of this rank's share of them is held during that
    one update. Rows of vocabulary padding never move and are not counted. Slots are the sums of squares by layer, and
    one that says whether all ranks have seen that update: the first after a start they have not.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._owners = model.owners()
        self._layers: list[int] = []
        self._weights: list[Tensor] = []
        """What this rank holds and counts of weights that an update will change, and the layers that they are of."""
        self._before: list[Tensor] | None = None
        """Copies of those weights."""
        self._squares: Tensor | None = None

    def due(self, step: ProbeStep) -> bool:
        return step.full

    def local(self) -> Tensor:
        slots = self._model.zeros(len(self._model.names) + 1)
        if self._squares is not None:
            copies = 1 if self._model.gate.masters_sharded else self._model.mesh.data.size
            slots[:-1], slots[-1] = self._squares / copies, 1.0
        return slots

    def finish(self, slots: Tensor) -> Measures:
        if slots[-1] != self._model.mesh.world_size:
            return Measures()
        sizes = torch.tensor(self._model.sizes, dtype=torch.float64)
        rms = (slots[:-1] / sizes.clamp(min=1)).sqrt()
        whole = (slots[:-1].sum() / sizes.sum()).sqrt().item()
        return Measures({"update_rms": whole, **by_layer("update_rms", self._model, rms.tolist())})

    @torch.no_grad()
    def before_update(self, *, full_next: bool) -> None:
        """Keep the weights that the coming update will change; of the last one nothing is left to tell."""
        self._before, self._squares = None, None
        if full_next:
            gate = self._model.gate
            held = [one for one in gate.masters() if gate.counts(one.parameter)]
            self._layers = [self._owners[id(one.parameter)] for one in held]
            self._weights = [one.weight for one in held]
            # Times 1 is a copy, of all of them at once.
            self._before = list(torch._foreach_mul(self._weights, 1.0)) if held else []

    @torch.no_grad()
    def after_update(self, learning_rate: float) -> None:
        """Compare the weights that were kept with what they have become."""
        if self._before is None:
            return
        if self._weights:
            torch._foreach_sub_(self._before, self._weights)  # in place: a square knows no sign
        self._squares = squares_by_layer(self._model, self._layers, self._before)
        self._before, self._weights = None, []

    def reset(self) -> None:
        self._before, self._squares = None, None
