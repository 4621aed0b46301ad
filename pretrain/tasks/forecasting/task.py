"""The task is to forecast series from their past."""

import torch

from data_pipeline.series.config import SeriesConfig
from data_pipeline.series.scaler import SCALER, parse_scaler
from data_pipeline.series.source import SeriesSource
from data_pipeline.source import Companion
from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec
from pretrain.models.context import Materials
from pretrain.tasks.forecasting.config import (
    ForecasterConfig,
    LinearConfig,
    MixerConfig,
    SamformerConfig,
    TemporalConfig,
)
from pretrain.tasks.forecasting.forecaster import SeriesForecaster
from pretrain.tasks.forecasting.linear import linear_layers
from pretrain.tasks.forecasting.mixer import mixer_layers
from pretrain.tasks.forecasting.objective import MeanError, squared_error
from pretrain.tasks.forecasting.samformer import samformer_layers
from pretrain.tasks.forecasting.temporal import temporal_layers
from pretrain.tasks.task import Metric, Objective, Task


class Forecasting(Task[ForecasterConfig]):
    """The task trains a model that tells the next steps of several series from those before."""

    source = SeriesSource()

    def layers(self, model: ForecasterConfig, data: SeriesConfig, materials: Materials) -> list[LayerSpec]:
        """It lists the layers of the kind of model that is configured."""
        match model:
            case SamformerConfig():
                return samformer_layers(model, data, materials)
            case TemporalConfig():
                return temporal_layers(model, data, materials)
            case MixerConfig():
                return mixer_layers(model, data, materials)
        assert isinstance(model, LinearConfig)
        return linear_layers(model, data, materials)

    def objective(self, model: ForecasterConfig, mesh: ParallelMesh) -> Objective:
        """It is the squared error of scaled values."""
        return squared_error

    def metrics(
        self, model: ForecasterConfig, mesh: ParallelMesh, companion: Companion
    ) -> tuple[Metric, ...]:
        """Validation reports the absolute error, and both in the units of the series."""
        scale_D = torch.tensor(parse_scaler(companion(SCALER)).deviations, dtype=torch.float64)
        return (
            MeanError("mae", 1),
            MeanError("mse_original", 2, scale_D),
            MeanError("mae_original", 1, scale_D),
        )

    def forecaster(
        self, model: ForecasterConfig, data: SeriesConfig, companion: Companion
    ) -> SeriesForecaster:
        """It reads and writes in the units of its data."""
        return SeriesForecaster(data, parse_scaler(companion(SCALER)))
