"""A batch is the contract between the data and everything that computes."""

from typing import Protocol, TypeVar

from torch import Tensor


class Batch(Protocol):
    """It is one micro-batch of any task.

    `inputs` feeds the first layer of the model and `labels` the objective; under pipeline parallelism
    these are different processes, so neither may need the other.
    """

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...

    @property
    def labels(self) -> tuple[Tensor, ...]: ...

    @property
    def samples(self) -> int:
        """It counts the samples in this micro-batch, the masked ones included."""

    @property
    def tokens(self) -> int:
        """It counts the tokens that the model reads for this micro-batch, for throughput and budgets."""

    @property
    def target_weight(self) -> float:
        """It is the sum of the weights of all targets, by which the summed loss is divided."""

    @property
    def damaged(self) -> tuple[str, ...]:
        """It names the samples that were found damaged and are masked (weight 0) here."""

    def scaled(self, factor: float) -> "Batch":
        """It returns the same batch with all target weights multiplied."""


BatchType = TypeVar("BatchType", bound=Batch)
