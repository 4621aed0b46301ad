"""The outline of a model is its layers by name and size, known without building it and without torch.

Everything outside of a task's room that must know what a model consists of reads it here: the partition into pipeline
stages, the estimates of memory and FLOPs, names and owners of what the probes measure, the targets of planted faults. A
test compares the outline of every task with the modules that it builds, by layer, name and shape.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Literal

from parallel.partition import partition_layers


@dataclass(frozen=True)
class ParameterSize:
    """It describes one parameter as the whole model has it."""

    name: str
    """As in `named_parameters()` of the layer's module."""
    shape: tuple[int, ...]
    part: str
    """What it belongs to, one of the outline's `parts`."""
    sharded: int | None = None
    """Dimension that tensor-parallel ranks divide among them; none: every one has a copy."""
    stacked: tuple[int, ...] = ()
    """Rows of the matrices that are stacked in it, such as those of queries, keys and values, of which every
    tensor-parallel rank has its share; empty: it is one."""
    looked_up: bool = False
    """Its rows are looked up and not multiplied: FLOPs do not count it, nor do counts without embeddings."""

    @property
    def matrices(self) -> int:
        """It counts the matrices that are stacked in it."""
        return len(self.stacked) or 1

    @property
    def size(self) -> int:
        """It counts the elements."""
        return prod(self.shape)

    def size_per_rank(self, tensor: int) -> int:
        """It counts the elements that one of `tensor` tensor-parallel ranks holds."""
        return self.size if self.sharded is None else self.size // tensor


@dataclass(frozen=True)
class BufferSize:
    """It describes a tensor beside the parameters that training changes, as the whole model has it."""

    name: str
    """As in `named_buffers()` of the layer's module."""
    shape: tuple[int, ...]
    sharded: int | None = None
    """As of a parameter."""
    stacked: tuple[int, ...] = ()
    """As of a parameter."""


@dataclass(frozen=True)
class TableSize:
    """It describes a layer whose `weight` is a table with a row for each token."""

    rows: int
    """Of the real vocabulary; those behind them are padding."""
    columns: int
    measures: str
    """Token embedding variability of the table is reported under this name: `tev_mean`, `tev_std` and so on. It begins
    with `tev`, by which the watchdog knows that several tables are one witness."""
    watched: bool = True
    """Tables that inputs are looked up in are watched at every step; a head's is measured where that is asked for."""
    input: int | None = None
    """Which of a batch's `inputs` holds the ids that are looked up in it; none: it is not looked up in."""


@dataclass(frozen=True)
class AttentionSize:
    """It describes one attention of a block."""

    module: str
    """Name of the module in the block that computes with q and k, such as `attention.core`."""
    heads: int
    """Query heads of the whole model."""
    name: str = ""
    """What sets it apart from the others of its block in the names of measures, such as `cross`; empty: there are no
    others."""


@dataclass(frozen=True)
class ActivationSize:
    """It says what a layer keeps of one sample for its backward pass, in numbers of the compute dtype."""

    whole: float = 0
    """Numbers that every tensor-parallel rank keeps."""
    sharded: float = 0
    """Numbers that tensor-parallel ranks divide among them."""
    masks: float = 0
    """Bytes of dropout masks."""
    wide: float = 0
    """Numbers in fp32 that tensor-parallel ranks divide among them; like those of a head's logits they are kept of one
    micro-batch at a time."""
    input: float | None = None
    """Numbers that are kept instead where the layer is recomputed in the backward pass; none: it is not."""


@dataclass(frozen=True)
class CollectiveSize:
    """It describes what tensor-parallel ranks tell each other in a layer, for every micro-batch."""

    kind: Literal["all_reduce", "all_gather", "reduce_scatter"]
    numbers: float
    """Of one sample: those of the whole that is reduced, gathered or scattered."""
    times: int = 1
    """In a micro-batch, recomputation included."""
    wide: bool = False
    """In fp32, not in the compute dtype."""
    beside: float = 0.0
    """FLOPs of one sample, over all tensor-parallel ranks, that a device computes meanwhile."""


@dataclass(frozen=True)
class LayerSize:
    """It describes one layer of the model, which a pipeline stage holds whole."""

    name: str
    """In the names of measures, such as `embedding` or `layer_07`."""
    parameters: tuple[ParameterSize, ...] = ()
    """Its own, in the order of its module."""
    buffers: tuple[BufferSize, ...] = ()
    """Its persistent ones."""
    is_block: bool = False
    """Stages are cut in front of blocks, and share them by their FLOPs."""
    tied_to: str = ""
    """The layer whose `weight` it uses as its own."""
    table: TableSize | None = None
    attentions: tuple[AttentionSize, ...] = ()
    activations: ActivationSize = ActivationSize()
    flops: float = 0.0
    """Of training on one sample, forward and backward, without recomputation."""
    repeated_flops: float = 0.0
    """Of these, those of what every tensor-parallel rank has whole, and computes for itself."""
    collectives: tuple[CollectiveSize, ...] = ()

    @property
    def tensors(self) -> tuple[ParameterSize | BufferSize, ...]:
        """These are its parameters and buffers."""
        return (*self.parameters, *self.buffers)

    @property
    def size(self) -> int:
        """It counts the elements of all parameters."""
        return sum(parameter.size for parameter in self.parameters)


@dataclass(frozen=True)
class Outline:
    """An outline lists all layers of a model in order."""

    layers: tuple[LayerSize, ...]
    parts: Mapping[str, str] = field(default_factory=dict)
    """Parts that parameters belong to, in the order of reports, each with what to say where it has none."""
    handed_on: int = 1
    """Tensors with a gradient that a layer hands to the next one, as an encoder's states beside the decoder's."""
    stream: int = 0
    """Numbers in those tensors of one sample, which pipeline stages send each other."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """These are the names of all layers, by index."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def blocks(self) -> tuple[int, ...]:
        """These are the indices of the blocks."""
        return tuple(index for index, layer in enumerate(self.layers) if layer.is_block)

    @cached_property
    def tables(self) -> tuple[int, ...]:
        """These are the indices of the layers that have a table of their own."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.table and not layer.tied_to)

    @cached_property
    def watched_tables(self) -> tuple[int, ...]:
        """These are the indices of the layers with a table of their own that is measured at every step."""
        return tuple(i for i in self.tables if (table := self.layers[i].table) and table.watched)

    def owner(self, index: int) -> int:
        """It returns the layer that the `weight` of a layer belongs to: its own, or that which it is tied to."""
        layer = self.layers[index]
        return self.names.index(layer.tied_to) if layer.tied_to else index

    @cached_property
    def tensors(self) -> dict[str, ParameterSize | BufferSize]:
        """These are all parameters and persistent buffers by their names in the whole model, such as
        `layer_07.attention.output.weight`."""
        return {f"{layer.name}.{size.name}": size for layer in self.layers for size in layer.tensors}

    def sharers(self, index: int) -> tuple[int, ...]:
        """It returns the layers that use the `weight` of a layer, itself first."""
        return (index, *(i for i, layer in enumerate(self.layers) if layer.tied_to == self.names[index]))

    def partition(self, stages: int) -> tuple[int, ...]:
        """It returns where pipeline stages begin, and raises ValueError where there are fewer blocks than stages.

        A block costs its FLOPs; where some have none to tell, all cost the same.
        """
        costs = {index: round(self.layers[index].flops) for index in self.blocks}
        known = all(costs.values())
        return partition_layers(
            [(costs[i] if known else 1) if layer.is_block else 0 for i, layer in enumerate(self.layers)],
            stages,
        )


def stage_of(index: int, boundaries: Sequence[int]) -> int:
    """It returns the pipeline stage that holds a layer."""
    return sum(index >= first for first in boundaries[1:-1])
