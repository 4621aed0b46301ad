"""RMS of the residual stream after each block."""

from functools import partial

from torch import Tensor

from pretrain.models.blocks import TransformerBlock
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep, by_block, observe_first_call


class ActivationProbe(Probe):
    """Over the global batch's first micro-batch; every tensor rank has the same stream, so the first one speaks."""

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._squares: dict[int, Tensor] = {}

    def due(self, occasion: ProbeStep) -> bool:
        return occasion.dense

    def begin(self, occasion: ProbeStep) -> None:
        self._squares.clear()
        if not (self._model.mesh.data.first and self._model.mesh.tensor.first):
            return
        for number, block in self._model.blocks:
            if isinstance(block, TransformerBlock):
                observe_first_call(block, partial(self._look, number), output=True)

    def _look(self, number: int, x_BSD: Tensor) -> None:
        # In rows: a norm over all entries at once would lose digits in fp32.
        norms = x_BSD.float().norm(dim=-1).double()
        self._squares[number] = norms.square().sum() / x_BSD.numel()

    def local(self) -> Tensor:
        slots = self._model.zeros(self._model.config.model.num_layers)
        for number, square in self._squares.items():
            slots[number] = square
        return slots

    def finish(self, slots: Tensor) -> Measures:
        rms = slots.sqrt()
        return Measures({"activation_rms_max": rms.max().item(), **by_block("activation_rms", rms.tolist())})
