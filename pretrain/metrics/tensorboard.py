"""TensorBoard: the tags under which measures appear, and the event files."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import summary

from pretrain.metrics.event_file import EventFile
from pretrain.runtime.run_folder_guard import folder_problem

_TAGS = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "ascended_loss": "train/ascended_loss",
    "ascent_gradient_norm": "train/ascent_gradient_norm",
    "gradient_variance": "train/gradient_variance",
    "seconds": "throughput/seconds_per_step",
    "tokens_per_second": "throughput/tokens_per_second",
    "tflops": "throughput/tflops",
    "mfu": "throughput/mfu",
    "memory_bytes": "memory/allocated_bytes",
    "memory_peak_bytes": "memory/peak_bytes",
    "memory_reserved_bytes": "memory/reserved_bytes",
    "memory_host_bytes": "memory/host_bytes",
    "wait_fraction": "data/wait_fraction",
    "damaged": "data/damaged_samples",
    "replicas_differ": "embedding/replicas_differ",
    "replicas_odd_rank": "embedding/replicas_odd_rank",
    "attention_entropy_min": "attention/entropy_min",
    "attention_entropy_mean": "attention/entropy_mean",
    "attention_entropy_slack_min": "attention/entropy_slack_min",
    "activation_rms": "activation/rms",
    "activation_rms_max": "activation/rms_max",
    "update_rms": "update/rms",
    "sigma": "spectral/sigma",
    "sigma_max": "spectral/sigma_max",
    "sharpness": "sharpness/eigenvalue",
    "sharpness_residual": "sharpness/residual",
}
"""Name in `metrics.jsonl` -> tag in TensorBoard; a probe that is not listed appears as `probe/NAME`.

What is measured by layer, NAME/LAYER, has the layer behind the tag of its name.
"""

_NOT_CURVES = {
    "step",
    "attempt",
    "lineage",
    "samples",
    "tokens",
    "wait_seconds",
    "validation_tokens",
    "validation_seconds",
}

_ABOVE_ZERO = 1e-12 * 1.1 ** numpy.arange(1233)
_BINS = [*-_ABOVE_ZERO[::-1], 0.0, *_ABOVE_ZERO]
"""Edges of the bins of histograms, each a tenth above the last: all that fp32 can hold, of a run that diverges, too."""

_TEV = re.compile(r"tev(_\w+)?_(mean|std|p99|max)|tev_reach")
"""Token embedding variability of the embedding table, or of another one by its name: `tev_mean`, `tev_head_mean`."""

_VALIDATION = "validation_"


def tagged(measures: Mapping[str, float]) -> dict[str, float]:
    """It returns the curves among the measures of a row of `metrics.jsonl`, by tag."""
    return {_tag(name): value for name, value in measures.items() if name not in _NOT_CURVES}


def _tag(name: str) -> str:
    base, slash, layer = name.partition("/")
    if base.startswith(_VALIDATION):
        return f"valid/{name.removeprefix(_VALIDATION)}"
    folder = "embedding" if _TEV.fullmatch(base) else "probe"
    return _TAGS.get(base, f"{folder}/{base}") + slash + layer


class Curves(Protocol):
    """Curves are drawn here."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def histogram(self, tag: str, values: Sequence[float], step: int) -> None: ...

    def text(self, tag: str, lines: Sequence[str], step: int) -> None: ...

    def close(self) -> None: ...


class EventFiles:
    """It writes TensorBoard's event files. After a failure a new one is begun: the old one may end torn.

    All methods raise OSError where they cannot be written.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder = folder
        self._first_step: int | None = first_step
        self._file: EventFile | None = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """It writes one event for all values of a step: each event is a write of its own."""
        self._write(
            Summary(value=[Summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]), step
        )

    def histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        """It leaves out what is not finite, which has no place on the axis."""
        finite = numpy.array([value for value in values if math.isfinite(value)])
        if finite.size:
            self._write(summary.histogram(tag, finite, _BINS), step)

    def text(self, tag: str, lines: Sequence[str], step: int) -> None:
        """It writes lines of which each is one, as `shown` makes them."""
        # As code: TensorBoard would take the text for Markdown, with links and images that browsers fetch.
        self._write(summary.text(tag, "\n".join(f"    {line}" for line in lines)), step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, event: Summary, step: int) -> None:
        try:
            if self._file is None or self._file.was_removed():
                self.close()
                if problem := folder_problem(self._folder):
                    raise OSError(problem)
                self._file = EventFile(self._folder, self._first_step)
                self._first_step = None
            self._file.add(event, step)
        except OSError:
            self.close()
            self._file = None
            raise


class NoCurves:
    """It draws nothing, for a run without TensorBoard."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def histogram(self, tag: str, values: Sequence[float], step: int) -> None: ...

    def text(self, tag: str, lines: Sequence[str], step: int) -> None: ...

    def close(self) -> None: ...
