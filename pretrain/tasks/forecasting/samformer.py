"""SAMformer is a list of layers: instance norm, blocks of attention over channels, norm and head.

B  windows in a micro-batch, D  channels, L  lookback, the width of the stream
"""

# Layers of a flow take and return a tuple, where those that they are made of take and return one tensor:
# mypy: disable-error-code="override"

from dataclasses import dataclass

import torch
from torch import Tensor

from data_pipeline.series.config import SeriesConfig
from parallel.pipeline import Activation, LayerSpec
from pretrain.models.attention import BlockPass, SelfAttention
from pretrain.models.blocks import ResidualBlock
from pretrain.models.context import LayerContext, Materials
from pretrain.tasks.forecasting.config import SamformerConfig
from pretrain.tasks.forecasting.ends import (
    StreamNorm,
    closed,
    glorot_std,
    head_layer,
    instance_norm_layers,
    opened,
)


@dataclass(frozen=True)
class ChannelContext(LayerContext):
    """It makes blocks over channels, with first weights by Glorot's rule."""

    keras: bool = False
    """Inputs and outputs are those that Keras counts."""

    def matrix_std(self, shape: tuple[int, int], *, residual: bool = False, asks: bool = False) -> float:
        """It returns the standard deviation of the first entries of a block's matrix, rows x columns.

        Keras (2.x and 3) keeps the matrix of queries, keys or values as (L, heads, K) and takes it for a convolution's:
        L places, `heads` inputs and K outputs at each, so it counts L heads inputs and L K outputs. That back to the
        stream, (heads, K, L), has heads K and heads L of them.
        """
        rows, columns = shape
        if not self.keras:
            return glorot_std(rows, columns)
        heads, size, width = self.config.attention.num_heads, self.config.head_size, self.config.hidden_size
        return (
            glorot_std(heads * width, heads * size) if residual else glorot_std(width * size, width * heads)
        )


class ChannelBlock(ResidualBlock):
    """Channels attend to each other, and there is nothing else: flow -> flow, the stream (B, D, L)."""

    def __init__(self, context: ChannelContext, index: int, *, frozen: bool) -> None:
        """`frozen`: attention keeps its first weights."""
        super().__init__(context, f"blocks.{index}")
        self.attention_norm = context.norm()
        self.attention = SelfAttention(context, f"{self.name}.attention", causal=False)
        if frozen:  # gradients of zero, and not none: those are what engines and probes can count on
            for parameter in self.attention.parameters():
                parameter.register_hook(torch.zeros_like)

    def forward(self, flow: Activation) -> Activation:
        x_BDL, others = opened(flow)
        return closed(super().forward(x_BDL.to(self.attention.output.weight.dtype)), others)

    def run(self, given: BlockPass, x_BDL: Tensor, *others: Tensor | None) -> Tensor:
        """It maps (B, D, L) -> (B, D, L)."""
        return self.add(
            x_BDL, self.attention_norm, lambda h: self.attention(h, given), given, "attention_residual"
        )


def samformer_layers(model: SamformerConfig, data: SeriesConfig, materials: Materials) -> list[LayerSpec]:
    """It lists instance norm, blocks, norm and head."""
    context = ChannelContext(model.blocks(data), materials, keras=model.init == "keras")
    block = {"context": context, "frozen": model.frozen_attention}
    return [
        *instance_norm_layers(data, model.instance_norm, bias=model.bias),
        *(LayerSpec(ChannelBlock, {**block, "index": index}) for index in range(model.num_layers)),
        LayerSpec(StreamNorm, {"context": context}),
        head_layer(data, materials, model.head_init, bias=model.bias),
    ]
