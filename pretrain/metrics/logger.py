"""The journal of a run: TensorBoard, `metrics.jsonl` and the console, written by one rank.

A journal never ends a run: what cannot be written is reported once and left out until writing works again.
Events (a checkpoint saved, a damaged sample) go to the console and, as text, to TensorBoard.
"""

import contextlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from pretrain.config.run import JournalConfig
from pretrain.metrics.console import StepLine, open_console
from pretrain.metrics.jsonl import MetricsFile, Row
from pretrain.run_folder import METRICS, TENSORBOARD
from pretrain.runtime.throughput import Throughput, peak_tflops
from pretrain.step import Action, StepReport, Verdict

_RETRY_SECONDS = 60.0

_TAGS = {
    "loss": "train/loss",
    "perplexity": "train/perplexity",
    "learning_rate": "train/learning_rate",
    "gradient_norm": "train/gradient_norm",
    "gradient_variance": "train/gradient_variance",
    "total_samples": "train/samples",
    "total_tokens": "train/tokens",
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
    "tev_mean": "embedding/tev_mean",
    "tev_std": "embedding/tev_std",
    "tev_p99": "embedding/tev_p99",
    "tev_max": "embedding/tev_max",
    "tev_reach": "embedding/tev_reach",
    "replicas_differ": "embedding/replicas_differ",
    "replicas_odd_rank": "embedding/replicas_odd_rank",
    "tev_head_mean": "embedding/tev_head_mean",
    "tev_head_std": "embedding/tev_head_std",
    "tev_head_p99": "embedding/tev_head_p99",
    "tev_head_max": "embedding/tev_head_max",
    "attention_entropy_min": "attention/entropy_min",
    "attention_entropy_mean": "attention/entropy_mean",
    "attention_entropy_slack_min": "attention/entropy_slack_min",
    "activation_rms": "activation/rms",
    "activation_rms_max": "activation/rms_max",
    "update_rms": "update/rms",
    "sigma": "spectral/sigma",
    "sigma_max": "spectral/sigma_max",
    "validation_loss": "valid/loss",
    "validation_perplexity": "valid/perplexity",
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


class MetricsLogger(ABC):
    """What the training loop tells a journal; leaving the context closes it."""

    @abstractmethod
    def record(self, report: StepReport, verdict: Verdict, measurements: Mapping[str, float]) -> None:
        """One optimizer step, also one whose update was withheld.

        `measurements` has `seconds`, the duration of the step, and maybe `wait_seconds`, the part of it spent
        waiting for data, bytes of memory, results of probes. Names become keys of `metrics.jsonl`.
        """

    @abstractmethod
    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        """The distribution of many values after a step; to TensorBoard alone."""

    @abstractmethod
    def curves(self, step: int, scalars: Mapping[str, float]) -> None:
        """Values of a step by tag; to TensorBoard alone."""

    @abstractmethod
    def rewind(self, undone: int, lineage: int) -> None:
        """The run has gone back, in `undone` attempts more than steps: curves go on, they do not overlap."""

    @abstractmethod
    def validation(self, step: int, loss: float, tokens: int, seconds: float) -> None:
        """Mean loss per target on the validation set, in nats, after a step."""

    @abstractmethod
    def event(self, step: int, text: str) -> None:
        """Something worth telling, in one line."""

    @abstractmethod
    def close(self) -> None:
        """Write out what is pending and give the terminal back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class SilentLogger(MetricsLogger):
    """The journal of the ranks that do not write one."""

    def record(self, report: StepReport, verdict: Verdict, measurements: Mapping[str, float]) -> None: ...

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None: ...

    def curves(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def rewind(self, undone: int, lineage: int) -> None: ...

    def validation(self, step: int, loss: float, tokens: int, seconds: float) -> None: ...

    def event(self, step: int, text: str) -> None: ...

    def close(self) -> None: ...


class FileLogger(MetricsLogger):
    """Writes `metrics.jsonl` and `tensorboard/` of a run folder, and the console."""

    def __init__(
        self,
        folder: Path,
        config: JournalConfig,
        *,
        total_steps: int,
        first_step: int,
        undone: int = 0,
        lineage: int = 1,
        flops_per_token: float,
        world_size: int,
        device_name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Continue the journal of a run folder.

        Args:
            total_steps: steps of the whole run.
            first_step: the first step that will be recorded; curves of an earlier session end before it.
            undone: attempts that rollbacks have undone so far; the axis of curves counts them.
            lineage: of the run; grows with every rollback.
            flops_per_token: of the model, forward and backward.
            device_name: what torch calls the accelerator, for its peak.

        Raises:
            OSError: the folder cannot be written at all.
        """
        peak = config.peak_tflops or peak_tflops(device_name)
        self._throughput = Throughput(flops_per_token, world_size, peak)
        self._console = open_console(config, total_steps)
        self._metrics = MetricsFile(folder / METRICS)
        self.rewind(undone, lineage)
        first = first_step + undone
        self._curves = _Curves(folder / TENSORBOARD, first) if config.tensorboard else _NoCurves()
        self._console_guard = _Guard("the console", lambda text: None, clock)
        self._metrics_guard = _Guard(METRICS, self._say, clock)
        self._curves_guard = _Guard(TENSORBOARD, self._say, clock)

    def record(self, report: StepReport, verdict: Verdict, measurements: Mapping[str, float]) -> None:
        place = {"attempt": report.step + self._undone, "lineage": self._lineage}
        measures = {**_measures(report, measurements, self._throughput), **place}
        self._append({**measures, **_verdict_columns(verdict)})
        self._draw({**measures, "perplexity": _perplexity(report.loss)}, report.step)
        line = _step_line(report, verdict, measures["tokens_per_second"])
        self._console_guard.attempt(lambda: self._console.step(line))

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        self._curves_guard.attempt(lambda: self._curves.histogram(tag, values, step + self._undone))

    def curves(self, step: int, scalars: Mapping[str, float]) -> None:
        if scalars:
            self._curves_guard.attempt(lambda: self._curves.scalars(scalars, step + self._undone))

    def rewind(self, undone: int, lineage: int) -> None:
        self._undone, self._lineage = undone, lineage

    def validation(self, step: int, loss: float, tokens: int, seconds: float) -> None:
        measures = {
            "step": step,
            "validation_loss": loss,
            "validation_perplexity": _perplexity(loss),
            "validation_tokens": tokens,
            "validation_seconds": seconds,
        }
        self._append(measures)
        self._draw(measures, step)
        self._say(
            f"step {step}: validation loss {loss:.4f}, perplexity {_perplexity(loss):.2f} "
            f"({tokens:,} tokens in {seconds:.1f} s)"
        )

    def event(self, step: int, text: str) -> None:
        self._say(f"step {step}: {text}")
        self._curves_guard.attempt(lambda: self._curves.text("run/events", text, step + self._undone))

    def close(self) -> None:
        for sink in (self._curves, self._metrics, self._console):
            with contextlib.suppress(OSError):
                sink.close()

    def _append(self, row: Row) -> None:
        self._metrics_guard.attempt(lambda: self._metrics.append(row))

    def _draw(self, measures: Mapping[str, float], step: int) -> None:
        self._curves_guard.attempt(lambda: self._curves.scalars(_tagged(measures), step + self._undone))

    def _say(self, text: str) -> None:
        self._console_guard.attempt(lambda: self._console.say(text))


class _Guard:
    """Runs writes that may fail; after a failure the next one is tried a minute later."""

    def __init__(self, name: str, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._name = name
        self._say = say
        self._clock = clock
        self._failed_at: float | None = None

    def attempt(self, write: Callable[[], None]) -> None:
        if self._failed_at is not None and self._clock() < self._failed_at + _RETRY_SECONDS:
            return
        try:
            write()
        except OSError as error:
            if self._failed_at is None:
                self._say(f"{self._name} cannot be written: {error}; training goes on without it")
            self._failed_at = self._clock()
        else:
            if self._failed_at is not None:
                self._say(f"{self._name} is written again")
            self._failed_at = None


class _Curves:
    """TensorBoard's event files. After a failure a new one is begun: the old one may end torn."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder = folder
        self._purge_step: int | None = first_step
        self._writer: SummaryWriter | None = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """One event for all values of a step: each event is a write of its own."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(lambda writer: writer._get_file_writer().add_summary(summary, step))

    def histogram(self, tag: str, values: Sequence[float], step: int) -> None:
        """What is not finite has no place on the axis."""
        finite = numpy.array([value for value in values if math.isfinite(value)])
        if finite.size:
            self._write(lambda writer: writer.add_histogram(tag, finite, step))

    def text(self, tag: str, text: str, step: int) -> None:
        self._write(lambda writer: writer.add_text(tag, text, step))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write(self, write: Callable[[SummaryWriter], None]) -> None:
        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self._folder), purge_step=self._purge_step, max_queue=1000)
                self._purge_step = None
            write(self._writer)
            self._writer.flush()  # else its thread keeps a full disk to itself
        except OSError:
            self._writer = None
            raise


class _NoCurves:
    """Without TensorBoard."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def histogram(self, tag: str, values: Sequence[float], step: int) -> None: ...

    def text(self, tag: str, text: str, step: int) -> None: ...

    def close(self) -> None: ...


def _measures(
    report: StepReport, measurements: Mapping[str, float], throughput: Throughput
) -> dict[str, float]:
    """Everything that is known about a step, by the names of `metrics.jsonl`."""
    seconds = measurements["seconds"]
    tokens_per_second = report.tokens / seconds
    derived = {"tokens_per_second": tokens_per_second, **throughput.measures(tokens_per_second)}
    if "wait_seconds" in measurements:
        derived["wait_fraction"] = measurements["wait_seconds"] / seconds
    return {
        "step": report.step,
        "samples": report.samples,
        "tokens": report.tokens,
        "loss": report.loss,
        "learning_rate": report.learning_rate,
        "gradient_norm": report.gradient_norm,
        "damaged": report.damaged,
        **report.measures,
        **measurements,
        **derived,
    }


def _verdict_columns(verdict: Verdict) -> dict[str, str]:
    if verdict.action is Action.PROCEED:
        return {"verdict": str(verdict.action)}
    return {"verdict": str(verdict.action), "reason": verdict.reason}


def _step_line(report: StepReport, verdict: Verdict, tokens_per_second: float) -> StepLine:
    return StepLine(
        step=report.step,
        loss=report.loss,
        learning_rate=report.learning_rate,
        gradient_norm=report.gradient_norm,
        tokens_per_second=tokens_per_second,
        remark="" if verdict.action is Action.PROCEED else f"{verdict.action}: {verdict.reason}",
    )


def _tagged(measures: Mapping[str, float]) -> dict[str, float]:
    return {_tag(name): value for name, value in measures.items() if name not in _NOT_CURVES}


def _tag(name: str) -> str:
    base, slash, layer = name.partition("/")
    return _TAGS.get(base, f"probe/{base}") + slash + layer


def _perplexity(loss: float) -> float:
    """exp(loss); infinite where that is no float64."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
