"""TSMixer is a list of layers: instance norm, blocks that mix times and channels, and head.

B  windows in a micro-batch, D  channels, L  lookback, F  inner width of the mixing of channels
"""

# Layers of a flow take and return a tuple, where those that they are made of take and return one tensor:
# mypy: disable-error-code="override"

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.series.config import SeriesConfig
from parallel.low_rank import ReplicatedLinear
from parallel.pipeline import Activation, LayerSpec
from pretrain.models.attention import BlockPass
from pretrain.models.blocks import ResidualBlock
from pretrain.models.context import LayerContext, Materials
from pretrain.tasks.forecasting.config import MixerConfig
from pretrain.tasks.forecasting.ends import (
    closed,
    glorot_std,
    head_layer,
    instance_norm_layers,
    opened,
)


class WindowNorm(nn.LayerNorm):
    """It normalizes each window (B, D, L) over all its channels and times, of which each has a gain and a bias. These
    are flat: they are no matrices to be decayed."""

    def __init__(self, context: LayerContext, channels: int) -> None:
        super().__init__(channels * context.config.hidden_size, context.config.normalization_epsilon)

    def forward(self, x_BDL: Tensor) -> Tensor:
        return super().forward(x_BDL.flatten(1)).view_as(x_BDL)


class MixerBlock(ResidualBlock):
    """Times of each channel are mixed, then channels at each time: flow -> flow, the stream (B, D, L).

    x + relu(M norm(x)), then x + W_2 relu(W_1 norm(x)). Norms are over D and L of a window.
    """

    def __init__(self, context: LayerContext, index: int, channels: int, *, share_layers: bool) -> None:
        """`share_layers`: it stands for all blocks of the model, and one norm for both of each."""
        super().__init__(context, f"blocks.{index}")
        config = context.config
        length, inner = config.hidden_size, config.ffn_size
        self.applied = config.num_layers if share_layers else 1
        self.time_norm = WindowNorm(context, channels)
        self.channel_norm = None if share_layers else WindowNorm(context, channels)
        self.mix_times = whole_linear(context, f"{self.name}.mix_times", length, length)
        self.up = whole_linear(context, f"{self.name}.up", inner, channels)
        self.down = whole_linear(context, f"{self.name}.down", channels, inner)

    def forward(self, flow: Activation) -> Activation:
        x_BDL, others = opened(flow)
        return closed(super().forward(x_BDL.to(self.mix_times.weight.dtype)), others)

    def run(self, given: BlockPass, x_BDL: Tensor, *others: Tensor | None) -> Tensor:
        """It maps (B, D, L) -> (B, D, L)."""
        channel_norm = self.channel_norm or self.time_norm
        for turn in range(self.applied):
            x_BDL = self.add(x_BDL, self.time_norm, self._mix_times, given, f"times_{turn}")
            mix_channels = partial(self._mix_channels, given=given, site=f"inner_{turn}")
            x_BDL = self.add(x_BDL, channel_norm, mix_channels, given, f"channels_{turn}")
        return x_BDL

    def _mix_times(self, h_BDL: Tensor) -> Tensor:
        return F.relu(self.mix_times(h_BDL))

    def _mix_channels(self, h_BDL: Tensor, given: BlockPass, site: str) -> Tensor:
        inner_BLF = F.relu(self.up(h_BDL.transpose(1, 2)))
        inner_BLF = given.dropout(inner_BLF, self.dropout, site)
        return self.down(inner_BLF).transpose(1, 2)


def whole_linear(context: LayerContext, name: str, rows: int, columns: int) -> ReplicatedLinear:
    """It makes a linear layer with a bias and Glorot's variance."""
    init = context.normal(name, glorot_std(rows, columns))
    return ReplicatedLinear(columns, [(rows, init)], tensor=context.mesh.tensor, bias=True)


def mixer_layers(model: MixerConfig, data: SeriesConfig, materials: Materials) -> list[LayerSpec]:
    """It lists instance norm, blocks and head; blocks that share their layers are one."""
    blocks = {
        "context": LayerContext(model.blocks(data), materials),
        "channels": data.channels,
        "share_layers": model.share_layers,
    }
    return [
        *instance_norm_layers(data, model.instance_norm),
        *(
            LayerSpec(MixerBlock, {**blocks, "index": index})
            for index in range(1 if model.share_layers else model.num_layers)
        ),
        head_layer(data, materials, model.head_init),
    ]
