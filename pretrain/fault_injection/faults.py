"""Planted faults, for rehearsals and tests: they act on a run from outside, where real ones would.

What is wrong with samples goes by their draws, so that a skip avoids it. Faults of memory and of computation happen
once, by the attempt, so that what is done again is sound. A fault of the learning rate goes by the update.

B  samples in a micro-batch, S  tokens in a sequence
W  rows of the embedding table on this rank, D  hidden size
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from data_pipeline.reading.batches import Batches
from data_pipeline.reading.order import draws_at
from data_pipeline.reading.stream import BatchStream
from data_pipeline.text.batch import TokenBatch
from parallel.mesh import ParallelMesh
from parallel.partition import LAYERS_AFTER_BLOCKS, LAYERS_BEFORE_BLOCKS
from pretrain.backend.setup import local_layers
from pretrain.config.run import ModelConfig, RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.fault_injection.plan import FaultPlan
from pretrain.models.attention import DenseProjection, LowRankProjection
from pretrain.models.blocks import TransformerBlock

LEARNING_RATE_FACTOR = 20.0
QUERY_FACTOR = 30.0
DRIFT = 0.002
COMMON_VECTOR = 5.0
"""Standard deviation of the common vector's entries, in that of the initial weights."""
HIGHEST_EXPONENT_BIT = {torch.float32: 30, torch.bfloat16: 14}
MIDDLE_BIT = {torch.float32: 25, torch.bfloat16: 9}
"""Of the exponent: set where it was clear, it makes a weight 16 times as large."""
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_SEARCHED = 4096

Alteration = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(tokens (S,), targets (S,), a generator that the draw has seeded) -> what they become."""


class Fault:
    """Hooks for a run to call; here they do nothing, as in the undisturbed twin."""

    def wrap_batches(self, stream: BatchStream[Any, Any]) -> Batches:
        """The stream that the run reads."""
        return stream

    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        """Before every optimizer step on every rank, with the number of this attempt, from 1."""

    def learning_rate(self, update: int, rate: float) -> float:
        """The learning rate of update `update`, from 0, which was to be `rate`."""
        return rate


class PlannedFault(Fault):
    """A fault with a plan on a rank of a run."""

    def __init__(self, plan: FaultPlan, config: RunConfig, mesh: ParallelMesh) -> None:
        self.plan = plan
        self.config = config
        self.mesh = mesh


def make_fault(plan: FaultPlan | None, config: RunConfig, mesh: ParallelMesh) -> Fault:
    """The fault of a plan, or none."""
    return KINDS[plan.name](plan, config, mesh) if plan else Fault()


# Samples


class AlteredStream:
    """A stream that alters the samples of some draws; for the rest it is the stream within."""

    def __init__(
        self,
        stream: BatchStream[Any, Any],
        mesh: ParallelMesh,
        batch_size: int,
        draws: range,
        alter: Alteration,
    ) -> None:
        self._stream = stream
        self._mesh = mesh
        self._batch_size = batch_size
        self._draws = draws
        self._alter = alter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        return self

    def __next__(self) -> list[TokenBatch]:
        batches = next(self._stream)
        draws = iter(self._own_draws())
        return [self._altered(batch, [next(draws) for _ in range(batch.samples)]) for batch in batches]

    def _own_draws(self) -> list[int]:
        """Draws of this rank's samples in the step that was just handed out."""
        state = self._stream.state()
        positions = state["position"] - self._batch_size + np.arange(self._batch_size)
        draws = draws_at(positions, [(start, stop) for start, stop in state["skip"]])
        own: list[int] = draws[self._mesh.data.rank :: self._mesh.data.size].tolist()
        return own

    def _altered(self, batch: TokenBatch, draws: list[int]) -> TokenBatch:
        tokens_BS, targets_BS = batch.tokens_BS.clone(), batch.targets_BS.clone()
        for row, draw in enumerate(draws):
            if draw in self._draws:
                generator = torch.Generator().manual_seed(draw)
                tokens_BS[row], targets_BS[row] = self._alter(tokens_BS[row], targets_BS[row], generator)
        return replace(batch, tokens_BS=tokens_BS, targets_BS=targets_BS)


class SampleFault(PlannedFault):
    """Something is wrong with the samples that these steps have when nothing is skipped before them."""

    def wrap_batches(self, stream: BatchStream[Any, Any]) -> Batches:
        size = self.config.data.global_batch_size
        first = (self.plan.step - 1) * size
        draws = range(first, first + self.plan.steps * size)
        return cast(Batches, AlteredStream(stream, self.mesh, size, draws, self.alter))

    def alter(self, tokens_S: Tensor, targets_S: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class PoisonedSamples(SampleFault):
    def alter(self, tokens_S: Tensor, targets_S: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return tokens_S, targets_S[torch.randperm(len(targets_S), generator=generator)]


class GarbageBatch(SampleFault):
    def alter(self, tokens_S: Tensor, targets_S: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        size = self.config.model.vocabulary_size
        block = torch.randint(size, (len(tokens_S) + 1,), generator=generator)
        return block[:-1], block[1:]


# Computation


class HookFault(PlannedFault):
    """A hook that is there during the steps of the plan and gone afterwards."""

    def __init__(self, plan: FaultPlan, config: RunConfig, mesh: ParallelMesh) -> None:
        super().__init__(plan, config, mesh)
        self._handles: list[RemovableHandle] = []

    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self.plan.covers(attempt) and self.strikes():
            self._handles.append(self.hook(engine))

    def strikes(self) -> bool:
        """Whether this rank has the fault."""
        raise NotImplementedError

    def hook(self, engine: TrainEngine) -> RemovableHandle:
        raise NotImplementedError


class NanGradient(HookFault):
    def strikes(self) -> bool:
        return self.mesh.rank == self.mesh.world_size - 1

    def hook(self, engine: TrainEngine) -> RemovableHandle:
        parameter = next(engine.module.parameters())
        return parameter.register_hook(lambda gradient: gradient * float("nan"))


class InfiniteLoss(HookFault):
    """All predictions but that of token 0 are impossible; gradients stay finite."""

    def strikes(self) -> bool:
        return self.mesh.pipeline.last and self.mesh.data.last

    def hook(self, engine: TrainEngine) -> RemovableHandle:
        _, head = local_layers(engine.module)[-1]
        return head.register_forward_hook(self._spoil)

    def _spoil(self, head: nn.Module, arguments: Any, logits_BSW: Tensor) -> Tensor | None:
        if not head.training:
            return None
        impossible = torch.ones(logits_BSW.shape[-1], dtype=torch.bool, device=logits_BSW.device)
        impossible[0] = not self.mesh.tensor.first
        return logits_BSW.masked_fill(impossible, float("-inf"))


class HighLearningRate(PlannedFault):
    def learning_rate(self, update: int, rate: float) -> float:
        return rate * LEARNING_RATE_FACTOR if self.plan.covers(update + 1) else rate


# Memory


class BitFlip(PlannedFault):
    """A bit of one weight of the embedding, as the model computes with it, in the last replica."""

    bits: Mapping[torch.dtype, int]

    @torch.no_grad()
    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        mesh = self.mesh
        if not (self.plan.covers(attempt) and mesh.pipeline.first and mesh.tensor.first and mesh.data.last):
            return
        weights = resident(embedding_of(engine))[:_SEARCHED]
        patterns, bit = weights.view(_BITS[weights.dtype]), self.bits[weights.dtype]
        clear = (patterns >> bit & 1 == 0) & (patterns != 0)
        patterns[clear.nonzero()[0]] ^= 1 << bit


class ExponentFlip(BitFlip):
    bits = HIGHEST_EXPONENT_BIT


class ReplicaFlip(BitFlip):
    bits = MIDDLE_BIT


class TevDrift(PlannedFault):
    """The optimizer's own weights drift, so that no copy of them heals it."""

    @torch.no_grad()
    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        if not self.plan.covers(attempt):
            return
        model = self.config.model
        generator = torch.Generator().manual_seed(self.config.run.seed)
        common_D = torch.randn(model.hidden_size, generator=generator) * (COMMON_VECTOR * model.init_std)
        width = model.padded_vocabulary_size // self.mesh.tensor.size
        real = min(max(model.vocabulary_size - width * self.mesh.tensor.rank, 0), width)
        for table in tables_of(engine, model):
            for flat, start in masters_of(engine, table):
                entries = torch.arange(start, start + len(flat), device=flat.device)
                drift = DRIFT * common_D.to(flat)[entries % model.hidden_size]
                flat += drift * (entries < real * model.hidden_size)


class ExplodingLogits(PlannedFault):
    """In the middle of the stack; under sigmaReparam, which takes no notice of a matrix's scale, gamma explodes."""

    @torch.no_grad()
    def before_step(self, engine: TrainEngine, attempt: int) -> None:
        number = LAYERS_BEFORE_BLOCKS + self.config.model.num_layers // 2
        block = dict(local_layers(engine.module)).get(number)
        if not (self.plan.covers(attempt) and isinstance(block, TransformerBlock)):
            return
        linear, rows = query_projection(block)
        if self.config.model.reparametrization == "sigma":
            linear.spectral.gamma_K[0] *= QUERY_FACTOR
            return
        for flat, start in masters_of(engine, linear.weight):
            flat[: max(rows * linear.input_size - start, 0)] *= QUERY_FACTOR


def query_projection(block: TransformerBlock) -> tuple[Any, int]:
    """The linear layer that queries come out of, and how many of its rows make them."""
    projection = block.attention.qkv
    if isinstance(projection, DenseProjection):
        return projection.linear, projection.linear.local_blocks[0]
    assert isinstance(projection, LowRankProjection)
    up: Any = projection.up[0]
    return up, up.local_blocks[0]


def embedding_of(engine: TrainEngine) -> nn.Parameter:
    """The embedding table, on the first stage."""
    _, layer = local_layers(engine.module)[0]
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight


def tables_of(engine: TrainEngine, model: ModelConfig) -> list[nn.Parameter]:
    """The embedding table and a tied head's copy of it, whichever are on this stage."""
    head = LAYERS_BEFORE_BLOCKS + model.num_layers + LAYERS_AFTER_BLOCKS - 1
    layers = dict(local_layers(engine.module))
    found = [layers[index].weight for index in (0, head)[: 1 + model.tied_embeddings] if index in layers]
    return [parameter for parameter in dict.fromkeys(found) if isinstance(parameter, nn.Parameter)]


def masters_of(engine: TrainEngine, parameter: nn.Parameter) -> Iterator[tuple[Tensor, int]]:
    """What this rank holds of the optimizer's weights of a parameter, flat, and where each piece begins."""
    for piece in engine.masters():
        if piece.parameter is parameter:
            yield piece.weight.view(-1), piece.start


def resident(parameter: Any) -> Tensor:
    """What of a parameter lies in this rank's memory, flat: with ZeRO-3 that may be a part."""
    held = parameter if parameter.numel() else parameter.ds_tensor
    flat: Tensor = held.detach().view(-1)
    return flat


KINDS: Mapping[str, type[PlannedFault]] = {
    "poisoned_samples": PoisonedSamples,
    "garbage_batch": GarbageBatch,
    "nan_gradient": NanGradient,
    "infinite_loss": InfiniteLoss,
    "high_learning_rate": HighLearningRate,
    "exponent_flip": ExponentFlip,
    "replica_flip": ReplicaFlip,
    "tev_drift": TevDrift,
    "exploding_logits": ExplodingLogits,
}
