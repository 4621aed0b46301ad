"""This small encoder-decoder is for tests of what must work for models that are no GPT.

It has two tables, blocks that see all of a padded source, and blocks that see a target up to each position and all of
the source. Token 0 is padding on both sides.

B  samples in a micro-batch, S  tokens of the source, T  tokens of the target, D  hidden size
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal
from unittest.mock import patch

import torch
from support.training import Layout, make_config
from torch import Tensor

from data_pipeline.config import DataConfig
from data_pipeline.text.config import TextConfig
from parallel.config import ParallelConfig
from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec
from pretrain.config.run import ProbesConfig, RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.engine.engine import TrainEngine
from pretrain.models.attention import BlockPass
from pretrain.models.blocks import ResidualBlock, TransformerBlock
from pretrain.models.config import TransformerConfig, VocabularyConfig
from pretrain.models.context import LayerContext, Materials
from pretrain.models.cross_attention import CrossAttention
from pretrain.models.embeddings import FinalNorm, TokenEmbedding, VocabularyHead
from pretrain.models.outline import AttentionSize, LayerSize, Outline, ParameterSize
from pretrain.models.sizes import (
    ATTENTION,
    block_parameters,
    block_size,
    column_parameters,
    embedding_size,
    final_norm_size,
    head_size,
    norm_parameters,
    row_parameters,
    spectral_buffers,
)
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.next_token import NextToken
from pretrain.tasks.registry import TASKS
from pretrain.tasks.task import Objective, Task

SOURCE, TARGET = 90, 70
"""Sizes of the vocabularies."""
SOURCE_LENGTH, TARGET_LENGTH = 24, 17


class PairConfig(TransformerConfig, TaskConfig):
    """It has an encoder, and a decoder of `num_layers` blocks."""

    kind: Literal["pair"] = "pair"
    encoder_layers: int = 2
    tied_embeddings: bool = True
    """The head uses the target's table."""
    joint: bool = False
    """Both sides have one vocabulary, and all three of embeddings and head one table."""
    multiple: int = 64
    """Tables are padded to a multiple of it."""

    data_section: ClassVar[type[DataConfig]] = TextConfig
    loss_unit: ClassVar[str] = "nats per token"
    targets: ClassVar[str] = "tokens"

    @property
    def source(self) -> VocabularyConfig:
        return VocabularyConfig(vocabulary_size=SOURCE, vocabulary_multiple=self.multiple)

    @property
    def target(self) -> VocabularyConfig:
        return VocabularyConfig(
            vocabulary_size=SOURCE if self.joint else TARGET,
            vocabulary_multiple=self.multiple,
            tied_embeddings=self.tied_embeddings,
        )

    def outline(self, data: DataConfig) -> Outline:
        encoders, decoders = range(self.encoder_layers), range(self.num_layers)
        target = embedding_size(self, self.target, TARGET_LENGTH, "embedding_target", "tev_target", input=1)
        if self.joint:
            target = replace(target, parameters=(), tied_to="embedding")
        return Outline(
            (
                embedding_size(self, self.source, SOURCE_LENGTH, "embedding"),
                *(block_size(self, f"encoder_{number:02d}", SOURCE_LENGTH) for number in encoders),
                target,
                *(decoder_size(self, f"decoder_{number:02d}") for number in decoders),
                final_norm_size(self),
                head_size(self, self.target, TARGET_LENGTH, tied_to=target.tied_to or target.name),
            ),
            handed_on=2,
        )

    def problems(self, data: DataConfig, parallel: ParallelConfig) -> Iterator[Any]:
        yield from ()


def decoder_size(config: PairConfig, name: str) -> LayerSize:
    heads = config.attention.num_heads
    block = block_size(config, name, TARGET_LENGTH)
    parameters = tuple(decoder_parameters(config))
    return replace(
        block,
        parameters=parameters,
        buffers=tuple(spectral_buffers(config, parameters)),
        attentions=(*block.attentions, AttentionSize("cross_attention.core", heads, "cross")),
    )


def decoder_parameters(config: PairConfig) -> Iterator[ParameterSize]:
    """It yields sizes in the order of the module: what an ordinary block has, then cross-attention with its norm."""
    D, K = config.hidden_size, config.num_key_value_heads * config.head_size
    yield from block_parameters(config)
    yield from norm_parameters(config, "cross_norm")
    yield from column_parameters(config, "cross_attention.query.linear", ATTENTION, (D, D))
    yield from column_parameters(config, "cross_attention.key_value.linear", ATTENTION, (2 * K, D), (K, K))
    yield from row_parameters(config, "cross_attention.output", ATTENTION, (D, D))


# Layers; what flows between them is (stream, source), then (stream, states, source, target)


class SourceEmbedding(TokenEmbedding):
    def forward(self, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        source_BS, target_BT = inputs
        return super().forward(source_BS), source_BS, target_BT


class EncoderBlock(TransformerBlock):
    def __init__(self, context: LayerContext, index: int) -> None:
        super().__init__(context, index, stack="encoder", causal=False)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x_BSD, source_BS, target_BT = inputs
        return super().forward(x_BSD, source_BS != 0), source_BS, target_BT


class TargetEmbedding(TokenEmbedding):
    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states_BSD, source_BS, target_BT = inputs
        return super().forward(target_BT), states_BSD, source_BS, target_BT


class DecoderBlock(TransformerBlock):
    def __init__(self, context: LayerContext, index: int) -> None:
        super().__init__(context, index, stack="decoder")
        self.cross_norm = context.norm()
        self.cross_attention = CrossAttention(context, f"{self.name}.cross_attention")

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y_BTD, states_BSD, source_BS, target_BT = inputs
        y_BTD = ResidualBlock.forward(self, y_BTD, states_BSD, source_BS != 0, target_BT != 0)
        return y_BTD, states_BSD, source_BS, target_BT

    def run(self, given: BlockPass, x_BSD: Tensor, *others: Tensor | None) -> Tensor:
        states_BSD, real_states_BS, real_BT = others

        def ask(h_BTD: Tensor) -> Tensor:
            assert states_BSD is not None
            return self.cross_attention(h_BTD, states_BSD, given, real_states_BS, real_BT)

        x_BSD = self.add(x_BSD, self.cross_norm, ask, given, "cross_residual")
        return super().run(given, x_BSD, real_BT)


class StreamNorm(FinalNorm):
    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        return super().forward(inputs[0])


class Pair(Task[PairConfig]):
    def layers(self, model: PairConfig, data: DataConfig, materials: Materials) -> list[LayerSpec]:
        shared = {"context": LayerContext(model, materials)}
        tie = "target" if model.tied_embeddings else None
        target = {**shared, "vocabulary": model.target}
        encoders, decoders = range(model.encoder_layers), range(model.num_layers)
        return [
            LayerSpec(
                SourceEmbedding,
                {**shared, "vocabulary": model.source, "name": "source"},
                tie=tie if model.joint else None,
            ),
            *(LayerSpec(EncoderBlock, {**shared, "index": number}) for number in encoders),
            LayerSpec(TargetEmbedding, {**target, "name": "target"}, tie=tie),
            *(LayerSpec(DecoderBlock, {**shared, "index": number}) for number in decoders),
            LayerSpec(StreamNorm, shared),
            LayerSpec(VocabularyHead, target, tie=tie),
        ]

    def objective(self, model: PairConfig, mesh: ParallelMesh) -> Objective:
        return NextToken(mesh.tensor)


# Runs


@dataclass(frozen=True)
class PairBatch:
    source_BS: Tensor
    target_BT: Tensor
    next_BT: Tensor
    weights_BT: Tensor
    damaged: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.source_BS, self.target_BT

    @property
    def labels(self) -> tuple[Tensor, ...]:
        return self.next_BT, self.weights_BT

    @property
    def samples(self) -> int:
        return len(self.source_BS)

    @property
    def tokens(self) -> int:
        return int((self.source_BS != 0).sum() + (self.target_BT != 0).sum())

    @property
    def target_weight(self) -> float:
        return float(self.weights_BT.sum())

    def scaled(self, factor: float) -> "PairBatch":
        return replace(self, weights_BT=self.weights_BT * factor)


def pair_config(layout: Layout, model: dict[str, Any], probes: dict[str, Any]) -> RunConfig:
    """It returns the configuration of a run with two blocks on either side."""
    config = make_config(layout)
    attention = {"num_heads": 4, **model.get("attention", {})}
    checkpointing = layout.checkpointing
    table = {"num_layers": 2, "hidden_size": 32, "activation_checkpointing": checkpointing, **model}
    pair = PairConfig.model_validate({**table, "attention": attention})
    return config.model_copy(update={"model": pair, "probes": ProbesConfig(**probes)})


def pair_batches(config: RunConfig, mesh: ParallelMesh, step: int) -> list[PairBatch]:
    """It returns this rank's micro-batches of a global batch that depends on the step alone; samples have several
    lengths, and one of them has no token."""
    generator = torch.Generator().manual_seed(step)
    size = config.data.global_batch_size
    source = padded(size, SOURCE_LENGTH, SOURCE, generator)
    blocks = padded(size, TARGET_LENGTH + 1, TARGET, generator)
    weights = (blocks[:, 1:] != 0).float()
    rows = torch.arange(size).view(-1, mesh.data.size, config.data.micro_batch_size)[:, mesh.data.rank]
    return [PairBatch(source[r], blocks[r, :-1], blocks[r, 1:], weights[r]) for r in rows]


def padded(samples: int, length: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    ids = torch.randint(1, vocabulary, (samples, length), generator=generator)
    ends = torch.randint(2, length + 1, (samples,), generator=generator)
    ends[0], ends[1] = length, 0
    return ids * (torch.arange(length) < ends[:, None])


def pair_engine(config: RunConfig, mesh: ParallelMesh) -> TrainEngine:
    """It returns the engine of a run, with the task in the registry."""
    planned = plan(config, mesh.world_size)
    with patch.dict(TASKS, {"pair": Pair()}):  # type: ignore[arg-type]
        return assemble_engine(config, planned, mesh, detect_kernels())
