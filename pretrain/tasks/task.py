"""This is the half of a task that needs torch: layers, objective, data and metrics.

A task is a room of its own; nothing outside of it and the two registries (`kinds`, `registry`) names it. Trainer,
engine, checkpoints, probes and watchdog know what stands here and in `pretrain.tasks.config`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from data_pipeline.source import Companion, Source
from parallel.mesh import ParallelMesh
from parallel.pipeline import LayerSpec
from pretrain.models.context import Materials
from pretrain.tasks.architecture import Architecture
from pretrain.tasks.config import TaskConfig
from pretrain.tasks.examples import Examples
from pretrain.tasks.forecaster import Forecaster
from pretrain.tasks.text import TextCodec
from pretrain.tasks.transcriber import Decoding, Transcriber
from pretrain.tasks.translator import Translator

Objective = Callable[[Any, tuple[Tensor, ...]], Tensor]
"""It maps (outputs of the last layer, labels of a batch) -> the weighted sum of the loss over its targets, a scalar."""

Model = TypeVar("Model", bound=TaskConfig)


class Metric(ABC):
    """A metric is a number that validation reports beside the loss."""

    name: str
    """Rows of metrics.jsonl have it as `validation_NAME`."""
    of_loss: ClassVar[bool] = False
    """Whether it follows from the loss alone; it is then shown of training steps, too, by one rank alone."""

    def sums(self, outputs: Any, labels: tuple[Tensor, ...]) -> Tensor:
        """It returns what one micro-batch adds, float64 (n,), n fixed. That is summed over micro-batches and ranks.

        Tensor-parallel ranks all come to the same sums; one of them is counted.
        """
        return torch.zeros(0, dtype=torch.float64)

    @abstractmethod
    def value(self, sums: Sequence[float], loss: float) -> float:
        """It returns the number that follows from the sums and from the mean loss."""


class Task(ABC, Generic[Model]):
    """A task says what a model of one kind is built from, and what it learns from. It has no state."""

    source: Source[Any, Any, Any]
    """The kind of data that it reads."""
    architectures: ClassVar[tuple[Architecture[Any], ...]] = ()
    """Those of Hugging Face's that hold some of its models."""

    @abstractmethod
    def layers(self, model: Model, data: Any, materials: Materials) -> list[LayerSpec]:
        """It returns the layers in the order of the outline."""

    @abstractmethod
    def objective(self, model: Model, mesh: ParallelMesh) -> Objective:
        """It returns what is minimised."""

    def validation_loss(self, model: Model, mesh: ParallelMesh) -> Objective:
        """It returns the loss that validation reports: the objective, unless that has what serves training alone."""
        return self.objective(model, mesh)

    def metrics(self, model: Model, mesh: ParallelMesh, companion: Companion) -> tuple[Metric, ...]:
        """It returns what validation reports beside the loss. `companion` is that of `text`; it raises DataError for a
        file that there is not."""
        return ()

    def examples(
        self, model: Model, data: Any, mesh: ParallelMesh, companion: Callable[[str], bytes]
    ) -> Examples[Any] | None:
        """It returns what makes predictions for samples of the validation set; none: its models predict nothing that
        people would read.

        `companion` is that of `text`; it raises DataError for a file that there is not.
        """
        return None

    def text(self, model: Model, data: Any, companion: Callable[[str], bytes]) -> TextCodec | None:
        """It returns how a model reads and writes text; none: it is none that continues text.

        `companion` returns a file that goes with the model, by its name (`Source.companions`).
        """
        return None

    def translator(self, model: Model, data: Any, companion: Callable[[str], bytes]) -> Translator | None:
        """It returns how a model reads sentences and writes translations; none: it is none that translates."""
        return None

    def transcriber(
        self, model: Model, data: Any, companion: Callable[[str], bytes], decoding: Decoding
    ) -> Transcriber | None:
        """It returns how a model hears recordings and writes transcripts; none: it is none that transcribes.

        Raises ConfigurationError and DataError for a language model that cannot be read.
        """
        return None

    def forecaster(self, model: Model, data: Any, companion: Callable[[str], bytes]) -> Forecaster | None:
        """It returns how a model reads series and writes forecasts; none: it is none that forecasts."""
        return None
