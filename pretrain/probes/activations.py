"""This probe measures the RMS of the residual stream after each block.

B  samples, S  positions, D  hidden size
"""

from functools import partial

import torch
from torch import Tensor

from parallel.stacks import from_host
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep, observe_first_call


class ActivationProbe(Probe):
    """It looks at the global batch's first micro-batch; every tensor rank has the same stream, so the first one speaks.

    The stream is what a block returns, or the first of the tensors that it returns. Each block has one slot.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._norms: dict[torch.Size, dict[int, Tensor]] = {}
        """By shape of the stream and by layer: norms of its rows."""

    def due(self, step: ProbeStep) -> bool:
        return step.full

    def begin(self, step: ProbeStep) -> None:
        self._norms.clear()
        if not (self._model.mesh.data.first and self._model.mesh.tensor.first):
            return
        for index, block in self._model.blocks.items():
            observe_first_call(block, partial(self._look, index), output=True)

    def _look(self, index: int, output: Tensor | tuple[Tensor, ...]) -> None:
        x_BSD = output if isinstance(output, Tensor) else output[0]
        # In rows: a norm over all entries at once would lose digits in fp32.
        dtype = torch.promote_types(x_BSD.dtype, torch.float32)
        norms_BS = torch.linalg.vector_norm(x_BSD, dim=-1, dtype=dtype)
        self._norms.setdefault(x_BSD.shape, {})[index] = norms_BS

    def local(self) -> Tensor:
        blocks = self._model.outline.blocks
        slots = self._model.zeros(len(blocks))
        for shape, norms in self._norms.items():
            squares = torch.stack([*norms.values()]).flatten(1).double().square().sum(dim=1) / shape.numel()
            places = from_host([blocks.index(index) for index in norms], slots.device, torch.int64)
            slots.index_copy_(0, places, squares)
        return slots

    def finish(self, slots: Tensor) -> Measures:
        rms = slots.sqrt()
        blocks = zip(self._model.outline.blocks, rms.tolist(), strict=True)
        each = {f"activation_rms/{self._model.names[index]}": value for index, value in blocks}
        return Measures({"activation_rms_max": rms.max().item(), **each})
