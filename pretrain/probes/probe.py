"""A probe has a fixed number of slots in the vector that the ranks sum once per step.

Every rank knows the layout of the slots from the outline and the step alone. Each slot is written by a known number of
ranks so that the sum over all ranks is the global value; where that is a maximum or a minimum, every contributor has a
slot of its own and they are folded after the sum. What is not finite stays in its slot.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from data_pipeline.batches import Batch
from parallel.mesh import ParallelMesh
from parallel.stacks import from_host
from parallel.statistics import squared_norms
from pretrain.backend.update_gate import UpdateGate
from pretrain.config.run import ProbesConfig
from pretrain.models.outline import LayerSize, Outline, ParameterSize, stage_of
from pretrain.probes.row_bound import RowBound
from pretrain.runtime.ranges import ranged


@dataclass(frozen=True)
class ProbeStep:
    """It is one optimizer step as the probes see it."""

    step: int
    full: bool
    """Whether the probes that do not look at every step look at this one."""
    asked: bool
    """Whether that was asked for, whatever the step's number: the step before was suspect."""
    histograms: bool
    batches: Sequence[Batch]
    """This rank's micro-batches."""


@dataclass(frozen=True)
class Measures:
    """They tell what a step was found to be, and are equal on all ranks."""

    scalars: Mapping[str, float] = field(default_factory=dict)
    histograms: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By tag in TensorBoard."""


@dataclass(frozen=True)
class ProbedModel:
    """It is this rank's part of the model, with what probes need to know about the rest."""

    outline: Outline
    boundaries: Sequence[int]
    """Where the pipeline stages begin in the outline's layers, and the end of the last one."""
    config: ProbesConfig
    zero_stage: int
    mesh: ParallelMesh
    layers: Sequence[tuple[int, nn.Module]]
    """Layers of this stage with their index in the outline."""
    gate: UpdateGate
    row_bound: Callable[[], RowBound] | None = None
    """It makes what compares the rows of a table with those of the step before; none where no bound is known."""

    @property
    def names(self) -> tuple[str, ...]:
        """It returns the names of all layers, by index."""
        return self.outline.names

    @cached_property
    def local(self) -> Mapping[int, nn.Module]:
        """It returns the layers of this stage by their index."""
        return dict(self.layers)

    @property
    def blocks(self) -> dict[int, nn.Module]:
        """It returns the blocks of this stage by their index."""
        return {index: self.local[index] for index in self.outline.blocks if index in self.local}

    @cached_property
    def sizes(self) -> list[int]:
        """It counts the parameters of each layer of the whole model, rows of vocabulary padding excluded."""
        return [
            sum(real_size(layer, parameter) for parameter in layer.parameters)
            for layer in self.outline.layers
        ]

    def stage(self, index: int) -> int:
        """It returns the pipeline stage that holds a layer."""
        return stage_of(index, self.boundaries)

    def owners(self) -> dict[int, int]:
        """It maps id of each parameter -> index of its layer; a tied one's is that of the layer that it is tied to."""
        found: dict[int, int] = {}
        for index, layer in self.layers:
            for name, parameter in layer.named_parameters():
                owner = self.outline.owner(index) if name == "weight" else index
                found.setdefault(id(parameter), owner)
        return found

    def zeros(self, *shape: int) -> Tensor:
        """It makes float64 slots on the device."""
        return torch.zeros(*shape, dtype=torch.float64, device=self.mesh.device)


def real_size(layer: LayerSize, parameter: ParameterSize) -> int:
    """It counts the elements of a parameter, of a table those of real rows."""
    if layer.table and parameter.name == "weight":
        return layer.table.rows * layer.table.columns
    return parameter.size


class Probe(ABC):
    """A probe looks at a step without changing it by a bit.

    Its methods are called on all ranks in the order that they stand in. That holds for a step that passes
    through its batch twice (sharpness-aware minimisation), too: each is called once.
    """

    of_gradients: ClassVar[bool] = False
    """It looks at what backward passes make: at the last pass, whose gradient moves the weights. Others look at weights
    and outputs, as they are in the first pass."""

    @abstractmethod
    def due(self, step: ProbeStep) -> bool:
        """It says whether the probe looks at this step; the answer is the same on all ranks."""

    def begin(self, step: ProbeStep) -> None:  # noqa: B027 - most need nothing here
        """It is called before the forward pass of the first micro-batch of a step that the probe looks at."""

    def gradients_averaged(self) -> None:  # noqa: B027
        """It is called after that step's last backward pass, before anything has touched the averaged gradients."""

    @abstractmethod
    def local(self) -> Tensor:
        """It returns this rank's slots, float64."""

    @abstractmethod
    def finish(self, slots: Tensor) -> Measures:
        """It returns what the summed slots say, and is pure."""

    def before_update(self, *, full_next: bool) -> None:  # noqa: B027
        """It is called before the update of any step, which may yet be withheld.

        `full_next` says that the next step is likely a full one.
        """

    def after_update(self, learning_rate: float) -> None:  # noqa: B027
        """It is called after the update of any step, with a rate of 0 where that was withheld."""

    def reset(self) -> None:  # noqa: B027
        """It is called between steps: the weights have been replaced, not updated."""

    def state_dict(self) -> dict[str, Any]:
        """It returns what the next step's measures rest on, under names of its own: tensors, equal on all ranks."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """It is called after `reset`, with the states of all probes; what is missing leaves the next step without."""


Observe = Callable[..., None]


def observe_first_call(module: nn.Module, observe: Observe, *, output: bool = False) -> None:
    """Call `observe` with the arguments (or the output) of the next forward pass of a module, and of no other.

    That is the first micro-batch's: weights that ZeRO-3 divides are whole then, and what activation checkpointing
    computes again is not seen.
    """
    handles: list[RemovableHandle] = []

    def hook(module: nn.Module, arguments: tuple[Any, ...], *outputs: Any) -> None:
        handles.pop().remove()
        with torch.no_grad(), ranged("probes"):
            observe(*(outputs if output else arguments))

    register = module.register_forward_hook if output else module.register_forward_pre_hook
    handles.append(register(hook))


def squares_by_layer(model: ProbedModel, layers: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    """It sums the squares of all entries by layer of the whole model, in float64."""
    return sums_by_layer(model, layers, squared_norms(tensors) if tensors else model.zeros(0))


def sums_by_layer(model: ProbedModel, layers: Sequence[int], values: Tensor) -> Tensor:
    """It sums up values, float64, by layer of the whole model: one for each of `layers`."""
    places = from_host(layers, values.device, torch.int64)
    return model.zeros(len(model.names)).index_add_(0, places, values)


def by_layer(name: str, model: ProbedModel, values: Sequence[float]) -> dict[str, float]:
    """It returns one measure for each layer that has parameters: `name/layer`."""
    triples = zip(model.names, model.sizes, values, strict=True)
    return {f"{name}/{layer}": value for layer, size, value in triples if size}
