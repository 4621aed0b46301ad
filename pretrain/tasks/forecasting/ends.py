"""These layers begin and end models that forecast.

B  windows in a micro-batch, D  channels, L  lookback, H  horizon, S  hidden size of a temporal Transformer

From layer to layer flows the stream, behind `InstanceNorm` with what takes a forecast back to the scale of its window,
restore (B, D, 2): a factor and what is added. It is in fp32 where a model computes in less, and has a gradient, since
it is made of the norm's gain and bias as well.
"""

# Layers of a flow take and return a tuple, where those that they are made of take and return one tensor:
# mypy: disable-error-code="override"

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from data_pipeline.series.config import SeriesConfig
from parallel.pipeline import Activation, LayerSpec
from pretrain.models.context import Materials
from pretrain.models.embeddings import FinalNorm

EPSILON = 1e-5


def opened(flow: Activation) -> tuple[Tensor, tuple[Tensor, ...]]:
    """It returns the stream, and what flows beside it."""
    if isinstance(flow, Tensor):
        return flow, ()
    stream, *others = flow
    return stream, tuple(others)


def closed(stream: Tensor, others: tuple[Tensor, ...]) -> Activation:
    """It makes a flow."""
    return (stream, *others) if others else stream


class InstanceNorm(nn.Module):
    """Reversible instance normalization (RevIN, Kim et al. 2022): windows (B, D, L) -> flow.

    Each channel of a window loses its mean and deviation over time, and gets the gain of its channel, and its bias if
    there is one. The inverse divides by the gain, which begins at 1, as the code behind SAMformer does.
    """

    def __init__(self, channels: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x_BDL: Tensor) -> Activation:
        variance_BD1, mean_BD1 = torch.var_mean(x_BDL, dim=-1, correction=0, keepdim=True)
        deviation_BD1 = (variance_BD1 + EPSILON).sqrt()
        gain_D1 = self.weight[:, None]
        factor_BD1 = deviation_BD1 / gain_D1
        scaled_BDL = (x_BDL - mean_BD1) / deviation_BD1 * gain_D1
        if self.bias is None:
            return scaled_BDL, torch.cat((factor_BD1, mean_BD1), dim=-1)
        bias_D1 = self.bias[:, None]
        return scaled_BDL + bias_D1, torch.cat((factor_BD1, mean_BD1 - bias_D1 * factor_BD1), dim=-1)


class StreamNorm(FinalNorm):
    """It normalizes the stream of a flow before the head."""

    def forward(self, flow: Activation) -> Activation:
        stream, others = opened(flow)
        return closed(super().forward(stream), others)


class HorizonHead(nn.Module):
    """One linear map from the past to the future, the same for all channels: flow -> forecasts (B, D, H), fp32
    at least.

    A temporal Transformer's `hidden` numbers at each time, (B, L, S), first become channels.
    """

    def __init__(
        self,
        materials: Materials,
        channels: int,
        lookback: int,
        horizon: int,
        init: Literal["glorot", "zero"] = "glorot",
        hidden: int | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        linear = partial(glorot_linear, materials, bias=bias)
        self.channels = linear("head.channels", channels, hidden) if hidden else None
        self.output = linear("head.output", horizon, lookback)
        if init == "zero":
            nn.init.zeros_(self.output.weight)

    def forward(self, flow: Activation) -> Tensor:
        x, others = opened(flow)
        x_BDL = self.channels(x).transpose(1, 2) if self.channels else x.to(self.output.weight.dtype)
        y_BDH: Tensor = self.output(x_BDL)
        y_BDH = y_BDH.to(torch.promote_types(y_BDH.dtype, torch.float32))
        for restore_BD2 in others:
            factor_BD1, shift_BD1 = restore_BD2.split(1, dim=-1)
            y_BDH = y_BDH * factor_BD1 + shift_BD1
        return y_BDH


def glorot_linear(
    materials: Materials, name: str, rows: int, columns: int, *, bias: bool = True
) -> nn.Linear:
    """It makes a linear layer that every tensor-parallel rank has whole, with Glorot's variance."""
    linear = nn.Linear(columns, rows, bias=bias)
    init = materials.normal(name, glorot_std(rows, columns))
    linear.weight = nn.Parameter(init.rows(0, rows, rows, columns))
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def glorot_std(outputs: int, inputs: int) -> float:
    """It returns the deviation of first weights by Glorot and Bengio 2010: sqrt(2 / (inputs + outputs)). What Keras
    draws evenly between two bounds has the same; here it is normal."""
    return float((2 / (inputs + outputs)) ** 0.5)


def instance_norm_layers(data: SeriesConfig, instance_norm: bool, *, bias: bool = True) -> list[LayerSpec]:
    """It lists the layer that windows begin with, if there is one."""
    return [LayerSpec(InstanceNorm, {"channels": data.channels, "bias": bias})] if instance_norm else []


def head_layer(
    data: SeriesConfig,
    materials: Materials,
    init: Literal["glorot", "zero"],
    hidden: int | None = None,
    *,
    bias: bool = True,
) -> LayerSpec:
    """It returns the layer that forecasts come out of."""
    sizes = {"channels": data.channels, "lookback": data.lookback, "horizon": data.horizon, "hidden": hidden}
    return LayerSpec(HorizonHead, {"materials": materials, "init": init, "bias": bias, **sizes})
