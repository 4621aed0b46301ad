"""Faults of memory leave weights that are not what the optimizer has made them.

W  rows of a table on this rank, D  hidden size
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parallel.mesh import ParallelMesh
from pretrain.backend.setup import local_layers
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.fault_injection.fault import PlannedFault
from pretrain.fault_injection.plan import FaultPlan
from pretrain.models.attention import SelfAttention
from pretrain.models.cross_attention import CrossAttention

QUERY_FACTOR = 30.0
DRIFT = 0.002
COMMON_VECTOR = 0.1
"""Standard deviation of the common vector's entries, five times that of usual initial weights."""
HIGHEST_EXPONENT_BIT = {torch.float32: 30, torch.bfloat16: 14}
MIDDLE_BIT = {torch.float32: 25, torch.bfloat16: 9}
"""Of the exponent: set where it was clear, it makes a weight 16 times as large."""
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_SEARCHED = 4096


class TableFault(PlannedFault):
    """It strikes the first table of the model that is watched."""

    def __init__(self, plan: FaultPlan, config: RunConfig, mesh: ParallelMesh) -> None:
        super().__init__(plan, config, mesh)
        self.outline = config.model.outline(config.data)
        self.layer, *_ = self.outline.watched_tables
        table = self.outline.layers[self.layer].table
        assert table is not None
        self.table = table


class BitFlip(TableFault):
    """It flips a bit of one weight of the table, as the model computes with it, in the last replica."""

    bits: Mapping[torch.dtype, int]

    @torch.no_grad()
    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        layer = dict(local_layers(engine.module)).get(self.layer)
        strikes = self.plan.covers(attempt) and self.mesh.tensor.first and self.mesh.data.last
        if layer is None or not strikes:
            return
        weights = resident(layer.weight)[:_SEARCHED]
        patterns, bit = weights.view(_BITS[weights.dtype]), self.bits[weights.dtype]
        clear = (patterns >> bit & 1 == 0) & (patterns != 0)
        patterns[clear.nonzero()[0]] ^= 1 << bit


class ExponentFlip(BitFlip):
    """It flips the highest bit of the exponent."""

    bits = HIGHEST_EXPONENT_BIT


class ReplicaFlip(BitFlip):
    """It flips a bit in the middle of the exponent."""

    bits = MIDDLE_BIT


class TevDrift(TableFault):
    """The optimizer's own weights drift, so that no copy of them heals it."""

    @torch.no_grad()
    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        if not self.plan.covers(attempt):
            return
        generator = torch.Generator().manual_seed(self.config.run.seed)
        columns = self.table.columns
        common_D = torch.randn(columns, generator=generator) * COMMON_VECTOR
        for weight, end in self._copies(engine):
            for flat, start in masters_of(engine, weight):
                entries = torch.arange(start, start + len(flat), device=flat.device)
                drift = DRIFT * common_D.to(flat)[entries % columns]
                flat += drift * (entries < end)

    def _copies(self, engine: TrainEngine) -> Iterator[tuple[nn.Parameter, int]]:
        """It yields the table as this stage's layers have it, each copy once, and how many entries are of real rows."""
        layers = dict(local_layers(engine.module))
        (whole,) = (p for p in self.outline.layers[self.layer].parameters if p.name == "weight")
        width = whole.shape[0] // (self.mesh.tensor.size if whole.sharded == 0 else 1)
        before = width * self.mesh.tensor.rank if whole.sharded == 0 else 0
        real = min(max(self.table.rows - before, 0), width)
        found = [layers[index].weight for index in self.outline.sharers(self.layer) if index in layers]
        for weight in dict.fromkeys(found):
            assert isinstance(weight, nn.Parameter)
            yield weight, real * self.table.columns


class ExplodingLogits(PlannedFault):
    """Queries in the middle of the stack explode.

    Under sigmaReparam, which takes no notice of a matrix's scale, their gamma does.
    """

    def __init__(self, plan: FaultPlan, config: RunConfig, mesh: ParallelMesh) -> None:
        super().__init__(plan, config, mesh)
        outline = config.model.outline(config.data)
        blocks = [index for index in outline.blocks if outline.layers[index].attentions]
        self.layer = blocks[len(blocks) // 2]
        self.attention = outline.layers[self.layer].attentions[0]

    @torch.no_grad()
    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        block = dict(local_layers(engine.module)).get(self.layer)
        if block is None or not self.plan.covers(attempt):
            return
        attention = block.get_submodule(self.attention.module.rpartition(".")[0])
        assert isinstance(attention, SelfAttention | CrossAttention)
        linear, rows = attention.queries()
        if linear.spectral is not None and linear.spectral.active:
            linear.spectral.gamma_K[0] *= QUERY_FACTOR
            return
        for flat, start in masters_of(engine, linear.weight):
            flat[: max(rows * linear.input_size - start, 0)] *= QUERY_FACTOR


def masters_of(engine: TrainEngine, parameter: nn.Parameter) -> Iterator[tuple[Tensor, int]]:
    """It yields what this rank holds of the optimizer's weights of a parameter, flat, and where each piece begins."""
    for piece in engine.masters():
        if piece.parameter is parameter:
            yield piece.weight.view(-1), piece.start


def resident(parameter: Any) -> Tensor:
    """It returns what of a parameter lies in this rank's memory, flat: with ZeRO-3 that may be a part."""
    held = parameter if parameter.numel() else parameter.ds_tensor
    flat: Tensor = held.detach().view(-1)
    return flat
