"""This probe measures the spectral norm of every matrix of the blocks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel.low_rank import ReplicatedLinear
from parallel.mesh import Axis
from parallel.power_step import initialise, power_step
from parallel.spectral import SpectralConfig, SpectralLayer, SpectralNorms
from parallel.stacks import from_host
from pretrain.backend.setup import gathered
from pretrain.models.outline import Outline
from pretrain.probes.probe import Measures, Probe, ProbedModel, ProbeStep

Linear = ColumnParallelLinear | RowParallelLinear | ReplicatedLinear


@dataclass(frozen=True)
class Stack:
    """A stack is the matrices in one weight of a block."""

    layer: int
    module: str
    """The linear layer in the block that has the weight."""
    start: int
    """Slot of the first matrix."""
    count: int

    @property
    def places(self) -> range:
        """Slots of its matrices."""
        return range(self.start, self.start + self.count)

    @property
    def names(self) -> list[str]:
        """It names the matrices in their block; those of a stack are numbered."""
        return [self.module] if self.count == 1 else [f"{self.module}.{k}" for k in range(self.count)]


class SpectralProbe(Probe):
    """It takes the norms that sigmaReparam has anyway, or else runs power iterations on from one full step to the next.

    The first look starts exactly for small matrices and with many power steps for large ones; each later one takes one
    step, in one all-reduce over the tensor group. Data ranks share the layers among them. With ZeRO-3 weights are
    gathered layer by layer. Each matrix of each block has one slot, in the order of the outline.
    """

    def __init__(self, model: ProbedModel) -> None:
        self._model = model
        self._stacks = list(stacks_of(model.outline))
        local = [(stack, linear_of(model, stack)) for stack in self._stacks if stack.layer in model.local]
        self._known = [(stack, linear.spectral) for stack, linear in local if linear.spectral is not None]
        """Norms that the model has."""
        self._followed = [(stack, linear) for stack, linear in local if linear.spectral is None]
        """Layers whose norms this probe follows itself."""
        self._layers: dict[int, SpectralLayer] = {}
        """The followed layers that are this data rank's, with their norms, by id; made at the first look."""

    def due(self, step: ProbeStep) -> bool:
        return step.full

    def local(self) -> Tensor:
        self._advance()
        slots = self._model.zeros(sum(stack.count for stack in self._stacks))
        if self._model.mesh.tensor.first:
            self._fill(slots)
        return slots

    @torch.no_grad()
    def _advance(self) -> None:
        data = self._model.mesh.data
        if self._model.zero_stage < 3:
            self._follow([linear for _, linear in self._followed[data.rank :: data.size]])
            return
        for index, (_, linear) in enumerate(self._followed):
            with gathered([linear.weight]):
                if index % data.size == data.rank:
                    self._follow([linear])

    def _follow(self, linears: Sequence[Linear]) -> None:
        tensor = self._model.mesh.tensor
        first = any(id(linear) not in self._layers for linear in linears)
        if first:
            self._layers |= {
                id(linear): SpectralLayer("", linear.weight, make_norms(linear, tensor)) for linear in linears
            }
        layers = [self._layers[id(linear)] for linear in linears]
        if layers and first:
            initialise(layers, tensor.group)
        elif layers:
            power_step(layers, tensor.group)

    def _fill(self, slots: Tensor) -> None:
        """Norms of the model's own are the same on all data ranks; those that are followed have one owner."""
        layers = [(stack, self._layers.get(id(linear))) for stack, linear in self._followed]
        followed = [(stack, layer.norms) for stack, layer in layers if layer is not None]
        for found, copies in ((self._known, self._model.mesh.data.size), (followed, 1)):
            if found:
                places = [place for stack, _ in found for place in stack.places]
                sigmas = torch.cat([norms.sigma_K for _, norms in found]).double()
                slots.index_copy_(0, from_host(places, slots.device, torch.int64), sigmas / copies)

    def finish(self, slots: Tensor) -> Measures:
        if not slots.isfinite().all():
            self._layers.clear()  # vectors that are not finite would stay so, whatever becomes of the weights
        if not len(slots):
            return Measures()
        sigmas = slots.tolist()
        matrices: dict[str, float] = {}
        blocks: dict[str, list[float]] = {}
        for stack in self._stacks:
            block, of_stack = self._model.names[stack.layer], sigmas[stack.start : stack.start + stack.count]
            blocks.setdefault(block, []).extend(of_stack)
            matrices.update(zip((f"sigma/{block}/{name}" for name in stack.names), of_stack, strict=True))
        largest = {f"sigma_max/{block}": largest_of(values) for block, values in blocks.items()}
        return Measures({"sigma_max": largest_of(sigmas), **largest, **matrices})

    def reset(self) -> None:
        self._layers.clear()


def largest_of(values: Sequence[float]) -> float:
    """It returns the largest value; one that is no number counts for more than any."""
    return max(values, key=lambda value: math.inf if math.isnan(value) else value)


def stacks_of(outline: Outline) -> Iterator[Stack]:
    """It yields the weights of all blocks that are matrices, those that are looked up excepted."""
    start = 0
    for layer in outline.blocks:
        for parameter in outline.layers[layer].parameters:
            module, _, name = parameter.name.rpartition(".")
            if name == "weight" and len(parameter.shape) == 2 and not parameter.looked_up:
                yield Stack(layer, module, start, parameter.matrices)
                start += parameter.matrices


def linear_of(model: ProbedModel, stack: Stack) -> Linear:
    """It returns the layer of this stage that has the matrices."""
    linear = model.local[stack.layer].get_submodule(stack.module)
    assert isinstance(linear, Linear), f"{stack.module} is no linear layer of ours"
    return linear


def blocks_of(linear: Linear) -> list[int]:
    """It returns the number of local rows of each matrix stacked in a layer."""
    return [linear.output_size] if isinstance(linear, RowParallelLinear) else linear.local_blocks


def make_norms(linear: Linear, tensor: Axis) -> SpectralNorms:
    """It makes norms that are followed and not used, on the device of the layer."""
    norms = SpectralNorms(
        linear.weight,
        blocks_of(linear),
        rows_sharded=not isinstance(linear, RowParallelLinear),
        config=SpectralConfig("sigma_stats_only", "sigma"),
        copies=tensor.size if isinstance(linear, ReplicatedLinear) else 1,
    )
    return norms.to(linear.weight.device)
