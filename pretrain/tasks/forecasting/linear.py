"""Linear forecasters are one layer, which counts as their block.

B  windows in a micro-batch, D  channels, L  lookback, H  horizon
"""

from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.series.config import SeriesConfig
from parallel.low_rank import ReplicatedLinear
from parallel.pipeline import LayerSpec
from pretrain.models.context import Materials
from pretrain.tasks.forecasting.config import LinearConfig
from pretrain.tasks.forecasting.ends import glorot_std


class LinearForecast(nn.Module):
    """One map from the past of a channel to its future, the same for all channels: (B, D, L) -> (B, D, H)."""

    def __init__(self, materials: Materials, data: SeriesConfig) -> None:
        super().__init__()
        self.output = whole_map(materials, data, "output")

    def forward(self, x_BDL: Tensor) -> Tensor:
        y_BDH: Tensor = self.output(x_BDL.to(self.output.weight.dtype))
        return y_BDH


class DecomposedForecast(nn.Module):
    """A moving average has a map of its own, and what it leaves of the series: (B, D, L) -> (B, D, H)."""

    def __init__(self, materials: Materials, data: SeriesConfig, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.remainder = whole_map(materials, data, "remainder")
        self.average = whole_map(materials, data, "average")

    def forward(self, x_BDL: Tensor) -> Tensor:
        around = self.kernel // 2
        padded = F.pad(x_BDL, (around, around), mode="replicate")
        average_BDL = F.avg_pool1d(padded, self.kernel, stride=1)
        dtype = self.average.weight.dtype
        y_BDH: Tensor = self.remainder((x_BDL - average_BDL).to(dtype)) + self.average(average_BDL.to(dtype))
        return y_BDH


def whole_map(materials: Materials, data: SeriesConfig, name: str) -> ReplicatedLinear:
    """It makes a map from lookback to horizon with Glorot's variance."""
    init = materials.normal(name, glorot_std(data.horizon, data.lookback))
    return ReplicatedLinear(data.lookback, [(data.horizon, init)], tensor=materials.mesh.tensor, bias=True)


def linear_layers(model: LinearConfig, data: SeriesConfig, materials: Materials) -> list[LayerSpec]:
    """It is one layer."""
    shared = {"materials": materials, "data": data}
    if model.kernel is None:
        return [LayerSpec(LinearForecast, shared)]
    return [LayerSpec(DecomposedForecast, {**shared, "kernel": model.kernel})]
