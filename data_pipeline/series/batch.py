"""Windows of time series form one micro-batch.

B  samples in a micro-batch, D  channels, L  steps in time that are read, H  steps in time that are forecast
"""

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class SeriesBatch:
    """It holds windows, each with what came after it. All numbers are scaled, with the means and deviations of the
    train split (`scaler.json`, see scaler.py).

    A sample that is damaged or pads a validation set is zeros of weight 0.
    """

    x_BDL: Tensor
    """float32; what the model reads."""
    y_BDH: Tensor
    """float32; what follows, to be forecast."""
    weights_B: Tensor
    """float32; 1 where the window counts, 0 where it is masked. The loss of a window is a mean over D x H."""
    damaged: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.x_BDL,)

    @property
    def labels(self) -> tuple[Tensor, ...]:
        return (self.y_BDH, self.weights_B)

    @property
    def samples(self) -> int:
        return self.x_BDL.shape[0]

    @property
    def tokens(self) -> int:
        """It counts steps in time, however many channels there are."""
        return self.x_BDL.shape[0] * self.x_BDL.shape[2]

    @property
    def target_weight(self) -> float:
        return float(self.weights_B.sum())

    def scaled(self, factor: float) -> "SeriesBatch":
        return replace(self, weights_B=self.weights_B * factor)
