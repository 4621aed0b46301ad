"""What a task gives to the engine beside its layers: an objective and metrics."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

Objective = Callable[[Any, tuple[Tensor, ...]], Tensor]
"""(outputs of the last layer, labels of a batch) -> the weighted sum of the loss over its targets, a scalar."""


class Metric(ABC):
    """A number that validation reports beside the loss."""

    name: str
    """Rows of metrics.jsonl have it as `validation_NAME`."""
    of_loss: ClassVar[bool] = False
    """It follows from the loss alone, and is drawn of training steps, too."""

    def sums(self, outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
        """What one micro-batch adds: float64 (n,), n fixed. It is summed over micro-batches and ranks.

        Tensor-parallel ranks all come to the same sums; one of them is counted.
        """
        return torch.zeros(0, dtype=torch.float64)

    @abstractmethod
    def value(self, sums: Sequence[float], loss: float) -> float:
        """The number that follows from the sums and from the mean loss."""
