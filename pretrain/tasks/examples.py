"""What a task says of examples: what its model makes of single samples of the validation set, as people read it.

A prediction may take several passes through the model, each of which reads what the passes before have chosen, as a
translation grows word by word; or one, where all is said at once. Whoever runs the passes knows nothing of that: they
go through the model that is being trained, in whatever layout it lies.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from torch import Tensor

from data_pipeline.batches import BatchType

Choice = Callable[[Any], Tensor]
"""It maps the outputs of the last layer for a micro-batch to what is kept of them: the same on all tensor ranks."""

Inputs = tuple[Tensor, ...]
"""They feed the first layer, for a micro-batch."""


@dataclass(frozen=True)
class Example:
    """It is what a model made of one sample."""

    source: str
    """What it was given."""
    reference: str
    """What it should have said."""
    prediction: str


Passes = Generator[Sequence[Inputs], Sequence[Tensor], Sequence[Example | None]]
"""It yields what is to go through the model, micro-batch by micro-batch, and is sent what was chosen of each, on the
host. In the end it returns an example for each of their rows; none for those that are damaged or padding."""


class Examples(ABC, Generic[BatchType]):
    """It turns batches of the validation set into examples, and scores them."""

    description: str
    """How predictions are made, and what their metrics are, so that others can compute the same."""

    @abstractmethod
    def choose(self, outputs: Any) -> Tensor:
        """It is the `Choice` of every pass."""

    @abstractmethod
    def passes(self, batches: Sequence[BatchType]) -> Passes:
        """It begins the predictions for this rank's micro-batches of a step; one pass there is at least."""

    @abstractmethod
    def metrics(self, examples: Sequence[Example]) -> Mapping[str, float]:
        """It returns the scores of one or more examples by name; metrics.jsonl has them as `validation_NAME`."""
