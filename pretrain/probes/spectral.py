"""Spectral norm of every matrix of the blocks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel.low_rank import ReplicatedLinear
from parallel.mesh import Axis
from parallel.spectral import SpectralConfig, SpectralLayer, SpectralNorms, initialise, power_step
from pretrain.backend.setup import gathered
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep, by_block

Linear = ColumnParallelLinear | RowParallelLinear | ReplicatedLinear


class SpectralProbe(Probe):
    """Norms that sigmaReparam has anyway, or else of power iterations that go on from one dense step to the next.

    The first look starts exactly for small matrices and with many power steps for large ones; each later one takes one
    step, in one all-reduce over the tensor group. Data ranks share the layers among them. With ZeRO-3 weights are
    gathered layer by layer. Slots: one for each matrix of each block, by what a block of this model consists of.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._linears = [
            (number, linear) for number, block in model.blocks for _, linear in linears_of(block)
        ]
        self._names = matrix_names(next(model.blocks)[1])
        self._followed = [linear for _, linear in self._linears if linear.spectral is None]
        """Layers whose norms this probe follows itself, because the model does not."""
        self._norms: dict[int, SpectralNorms] = {}
        """Those of the followed layers that are this data rank's, by id; made at the first look."""

    def due(self, occasion: ProbeStep) -> bool:
        return occasion.dense

    def local(self) -> Tensor:
        self._advance()
        slots_LM = self._model.zeros(self._model.config.model.num_layers, len(self._names))
        if self._model.mesh.tensor.first:
            self._fill(slots_LM)
        return slots_LM.view(-1)

    @torch.no_grad()
    def _advance(self) -> None:
        data = self._model.mesh.data
        if self._model.config.parallel.zero_stage < 3:
            self._follow(self._followed[data.rank :: data.size])
            return
        for index, linear in enumerate(self._followed):
            with gathered([linear.weight]):
                if index % data.size == data.rank:
                    self._follow([linear])

    def _follow(self, linears: Sequence[Linear]) -> None:
        tensor = self._model.mesh.tensor
        first = any(id(linear) not in self._norms for linear in linears)
        layers = []
        for linear in linears:
            norms = self._norms[id(linear)] if not first else make_norms(linear, tensor)
            self._norms[id(linear)] = norms
            layers.append(SpectralLayer("", linear.weight, norms))
        if layers and first:
            initialise(layers, tensor.group)
        elif layers:
            power_step(layers, tensor.group)

    def _fill(self, slots_LM: Tensor) -> None:
        """Norms of the model's own are the same on all data ranks; those that are followed have one owner."""
        column = 0
        for number, linear in self._linears:
            norms = linear.spectral or self._norms.get(id(linear))
            copies = self._model.mesh.data.size if linear.spectral else 1
            count = len(blocks_of(linear))
            if norms is not None:
                slots_LM[number, column : column + count] = norms.sigma_K.double() / copies
            column = (column + count) % len(self._names)

    def finish(self, slots: Tensor) -> Measures:
        if not slots.isfinite().all():
            self._norms.clear()  # vectors that are not finite would stay so, whatever becomes of the weights
        sigma_LM = slots.view(-1, len(self._names))
        matrices = {
            f"sigma/layer_{number:02d}/{name}": value
            for number, row in enumerate(sigma_LM.tolist())
            for name, value in zip(self._names, row, strict=True)
        }
        largest = by_block("sigma_max", sigma_LM.amax(1).tolist())
        return Measures({"sigma_max": sigma_LM.amax().item(), **largest, **matrices})

    def forget(self) -> None:
        self._norms.clear()


def linears_of(block: nn.Module) -> Iterator[tuple[str, Linear]]:
    """Linear layers of a block with their names."""
    for name, module in block.named_modules():
        if isinstance(module, Linear):
            yield name, module


def blocks_of(linear: Linear) -> list[int]:
    """Local rows of each matrix stacked in a layer."""
    return [linear.output_size] if isinstance(linear, RowParallelLinear) else linear.local_blocks


def matrix_names(block: nn.Module) -> list[str]:
    """Every matrix of a block; those of a stack are numbered."""
    names = []
    for name, linear in linears_of(block):
        count = len(blocks_of(linear))
        names += [name] if count == 1 else [f"{name}.{number}" for number in range(count)]
    return names


def make_norms(linear: Linear, tensor: Axis) -> SpectralNorms:
    """Norms that are followed and not used, on the device of the layer."""
    norms = SpectralNorms(
        linear.weight,
        blocks_of(linear),
        rows_sharded=not isinstance(linear, RowParallelLinear),
        config=SpectralConfig("sigma_stats_only", "sigma"),
        copies=tensor.size if isinstance(linear, ReplicatedLinear) else 1,
    )
    return norms.to(linear.weight.device)
