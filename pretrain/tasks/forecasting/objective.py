"""Models that forecast minimise the squared error; validation reports the absolute one, too, and both in the units of
the series.

B  windows in a micro-batch, D  channels, H  horizon
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pretrain.tasks.task import Metric


def squared_error(outputs_BDH: Any, labels: tuple[Tensor, ...]) -> Tensor:
    """It is the weighted sum of the mean squared error of each window, over channels and steps in time, in fp32 at
    least, which the labels have."""
    y_BDH, weights_B = labels
    errors_B = (outputs_BDH - y_BDH).square().mean(dim=(1, 2))
    return (errors_B * weights_B).sum()


class MeanError(Metric):
    """The mean over windows, channels and steps in time of the absolute error, or of its square."""

    def __init__(self, name: str, power: int, scale_D: Tensor | None = None) -> None:
        """Errors of each channel are multiplied by `scale_D` first."""
        self.name = name
        self._power = power
        self._scale_D = scale_D

    def sums(self, outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
        """The mean errors of all windows that count, and how many these are."""
        y_BDH, weights_B = labels
        errors_BD = (outputs - y_BDH).abs().pow(self._power).mean(dim=2).double()
        if self._scale_D is not None:
            errors_BD = errors_BD * self._scale_D.to(errors_BD).pow(self._power)
        counted_B = weights_B > 0
        return torch.stack((errors_BD.mean(dim=1)[counted_B].sum(), counted_B.sum().double()))

    def value(self, sums: Sequence[float], loss: float) -> float:
        """Their mean."""
        errors, windows = sums
        return errors / windows
