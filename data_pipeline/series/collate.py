"""Windows of time series become batches of tensors here.

B  samples in a micro-batch, R  rows of a window: lookback L and horizon H, D  channels
"""

from collections.abc import Sequence

import numpy as np
import torch

from data_pipeline.series.batch import SeriesBatch
from data_pipeline.series.config import SeriesConfig
from data_pipeline.shards.dataset import Sample


class WindowCollator:
    """It stacks windows; a sample without fields becomes zeros of weight 0."""

    def __init__(self, data: SeriesConfig) -> None:
        self._lookback = data.lookback
        self._shape = (data.lookback + data.horizon, data.channels)

    def __call__(self, samples: Sequence[Sample]) -> SeriesBatch:
        rows_BRD = np.zeros((len(samples), *self._shape), np.float32)
        for row, sample in enumerate(samples):
            if sample.fields:
                rows_BRD[row] = sample.fields[0]
        rows_BDR = torch.from_numpy(rows_BRD).transpose(1, 2)
        return SeriesBatch(
            x_BDL=rows_BDR[..., : self._lookback].contiguous(),
            y_BDH=rows_BDR[..., self._lookback :].contiguous(),
            weights_B=torch.tensor([float(bool(sample.fields)) for sample in samples]),
            damaged=tuple(sample.damage for sample in samples if sample.damage),
        )
