"""A temporal Transformer is a list of layers: instance norm, embedding, positions, blocks over times, norm and head.

B  windows in a micro-batch, D  channels, L  lookback, S  hidden size
"""

# Layers of a flow take and return a tuple, where those that they are made of take and return one tensor:
# mypy: disable-error-code="override"

from torch import nn

from data_pipeline.series.config import SeriesConfig
from parallel.pipeline import Activation, LayerSpec
from pretrain.models.blocks import TransformerBlock
from pretrain.models.context import LayerContext, Materials
from pretrain.models.embeddings import EmbeddingPositions
from pretrain.tasks.forecasting.config import TemporalConfig
from pretrain.tasks.forecasting.ends import (
    StreamNorm,
    closed,
    head_layer,
    instance_norm_layers,
    opened,
)


class TimeEmbedding(nn.Module):
    """All channels at a time become one token: flow with windows (B, D, L) -> flow with the stream (B, L, S)."""

    def __init__(self, context: LayerContext, channels: int) -> None:
        super().__init__()
        size = context.config.hidden_size
        self.embedding = nn.Linear(channels, size, bias=context.config.bias)
        # Channels have variance 1, and so have tokens, as the positions that are added to them.
        init = context.normal("embedding", channels**-0.5)
        self.embedding.weight = nn.Parameter(init.rows(0, size, size, channels))
        if self.embedding.bias is not None:
            nn.init.zeros_(self.embedding.bias)

    def forward(self, flow: Activation) -> Activation:
        x_BDL, others = opened(flow)
        return closed(self.embedding(x_BDL.transpose(1, 2).to(self.embedding.weight.dtype)), others)


class StreamPositions(EmbeddingPositions):
    """It gives the stream of a flow its positions."""

    def forward(self, flow: Activation) -> Activation:
        stream, others = opened(flow)
        return closed(super().forward(stream), others)


class TimeBlock(TransformerBlock):
    """Every time sees all others."""

    def __init__(self, context: LayerContext, index: int) -> None:
        super().__init__(context, index, causal=False)

    def forward(self, flow: Activation) -> Activation:
        stream, others = opened(flow)
        return closed(super().forward(stream), others)


def temporal_layers(model: TemporalConfig, data: SeriesConfig, materials: Materials) -> list[LayerSpec]:
    """It lists instance norm, embedding, positions, blocks, norm and head."""
    shared = {"context": LayerContext(model, materials)}
    return [
        *instance_norm_layers(data, model.instance_norm, bias=model.bias),
        LayerSpec(TimeEmbedding, {**shared, "channels": data.channels}),
        LayerSpec(StreamPositions, {**shared, "sequence_length": data.lookback, "factor": 1.0}),
        *(LayerSpec(TimeBlock, {**shared, "index": index}) for index in range(model.num_layers)),
        LayerSpec(StreamNorm, shared),
        head_layer(data, materials, model.head_init, model.hidden_size, bias=model.bias),
    ]
