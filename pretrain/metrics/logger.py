"""The metrics of a run: TensorBoard, `metrics.jsonl` and the console, written by one rank.

A logger never ends a run: what cannot be written is reported once and left out until writing works again.
Events (a checkpoint saved, a damaged sample) go to the console and, as text, to TensorBoard.
"""

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

from data_pipeline.shown import masked, shown
from pretrain.config.run import JournalConfig
from pretrain.metrics.console import StepLine, open_console
from pretrain.metrics.jsonl import MetricsFile, Row
from pretrain.metrics.tensorboard import Curves, EventFiles, NoCurves, tagged
from pretrain.run_folder import METRICS, TENSORBOARD
from pretrain.runtime.throughput import Throughput, peak_tflops
from pretrain.step import Action, StepReport, Verdict
from pretrain.tasks.examples import Example
from pretrain.tasks.task import Metric

_RETRY_SECONDS = 60.0
_SHOWN_EXAMPLES = 5
"""Each has a tag of its own, so that TensorBoard shows what becomes of it from one validation to the next."""


class MetricsLogger(ABC):
    """The training loop tells it what happens; leaving the context closes it."""

    @abstractmethod
    def record(self, report: StepReport, verdict: Verdict, measurements: Mapping[str, float]) -> None:
        """It is told of each optimizer step, also of one whose update was withheld.

        `measurements` has `seconds`, the duration of the step, and maybe `wait_seconds`, the part of it spent
        waiting for data, bytes of memory, results of probes. Names become keys of `metrics.jsonl`.
        """

    @abstractmethod
    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        """It draws the distribution of many values after a step, in TensorBoard alone."""

    @abstractmethod
    def curves(self, step: int, scalars: Mapping[str, float]) -> None:
        """It draws values of a step by tag, in TensorBoard alone."""

    @abstractmethod
    def rewind(self, undone: int, lineage: int) -> None:
        """The run has gone back, in `undone` attempts more than steps: curves go on, they do not overlap."""

    @abstractmethod
    def validation(
        self, step: int, loss: float, targets: int, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        """It is told of the mean loss per target on the validation set after a step, and of the task's metrics."""

    @abstractmethod
    def examples(self, step: int, examples: Sequence[Example]) -> None:
        """It shows some of what a model made of samples of the validation set after a step, in TensorBoard alone."""

    @abstractmethod
    def event(self, step: int, text: str) -> None:
        """It tells something worth telling, in one line."""

    @abstractmethod
    def close(self) -> None:
        """It writes out what is pending and gives the terminal back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class SilentLogger(MetricsLogger):
    """It is the logger of the ranks that do not write."""

    def record(self, report: StepReport, verdict: Verdict, measurements: Mapping[str, float]) -> None: ...

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None: ...

    def curves(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def rewind(self, undone: int, lineage: int) -> None: ...

    def validation(
        self, step: int, loss: float, targets: int, seconds: float, metrics: Mapping[str, float]
    ) -> None: ...

    def examples(self, step: int, examples: Sequence[Example]) -> None: ...

    def event(self, step: int, text: str) -> None: ...

    def close(self) -> None: ...


class FileLogger(MetricsLogger):
    """It writes `metrics.jsonl` and `tensorboard/` of a run folder, and the console."""

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
        metrics: Sequence[Metric] = (),
        targets: str = "targets",
        attended: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """It goes on where the files of a run folder end.

        Args:
            total_steps: steps of the whole run.
            first_step: the first step that will be recorded; curves of an earlier session end before it.
            undone: attempts that rollbacks have undone so far; the axis of curves counts them.
            lineage: of the run; grows with every rollback.
            flops_per_token: of the model, forward and backward.
            device_name: what torch calls the accelerator, for its peak.
            metrics: the task's; those that follow from the loss are drawn of every step.
            targets: what the task calls its targets, such as tokens.
            attended: whether people look at a terminal at standard output.

        Raises:
            OSError: the folder cannot be written at all.
        """
        peak = config.peak_tflops or peak_tflops(device_name)
        self._throughput = Throughput(flops_per_token, world_size, peak)
        self._console = open_console(config, total_steps, attended=attended)
        self._console_guard = _Guard("the console", lambda text: None, clock)
        self._metrics = MetricsFile(folder / METRICS, self._say)
        self.rewind(undone, lineage)
        first = first_step + undone
        self._curves: Curves = NoCurves()
        if config.tensorboard:
            self._curves = EventFiles(folder / TENSORBOARD, first)
        self._of_loss = [metric for metric in metrics if metric.of_loss]
        self._targets = targets
        self._metrics_guard = _Guard(METRICS, self._say, clock)
        self._curves_guard = _Guard(TENSORBOARD, self._say, clock)

    def record(self, report: StepReport, verdict: Verdict, measurements: Mapping[str, float]) -> None:
        place = {"attempt": report.step + self._undone, "lineage": self._lineage}
        measures = {**_measures(report, measurements, self._throughput), **place}
        self._append({**measures, **_verdict_columns(verdict)})
        of_loss = {f"train/{metric.name}": metric.value((), report.loss) for metric in self._of_loss}
        self._draw({**tagged(measures), **of_loss}, report.step)
        line = _step_line(report, verdict, measures["tokens_per_second"])
        self._console_guard.attempt(lambda: self._console.step(line))

    def histogram(self, step: int, tag: str, values: Sequence[float]) -> None:
        self._curves_guard.attempt(lambda: self._curves.histogram(tag, values, step + self._undone))

    def curves(self, step: int, scalars: Mapping[str, float]) -> None:
        if scalars:
            self._draw(scalars, step)

    def rewind(self, undone: int, lineage: int) -> None:
        self._undone, self._lineage = undone, lineage

    def validation(
        self, step: int, loss: float, targets: int, seconds: float, metrics: Mapping[str, float]
    ) -> None:
        measures = {
            "step": step,
            "validation_loss": loss,
            **{f"validation_{name}": value for name, value in metrics.items()},
            "validation_tokens": targets,
            "validation_seconds": seconds,
        }
        self._append(measures)
        self._draw(tagged(measures), step)
        values = "".join(f", {name} {_rounded(value)}" for name, value in metrics.items())
        self._say(
            f"step {step}: validation loss {loss:.4f}{values} "
            f"({targets:,} {self._targets} in {seconds:.1f} s)"
        )

    def examples(self, step: int, examples: Sequence[Example]) -> None:
        for number, example in enumerate(examples[:_SHOWN_EXAMPLES], start=1):
            lines = [f"{name:10}  {shown(text)}" for name, text in asdict(example).items()]
            self._write_text(f"valid/example_{number}", lines, step)

    def event(self, step: int, text: str) -> None:
        self._say(f"step {step}: {(line := shown(masked(text)))}")
        self._write_text("run/events", [line], step)

    def close(self) -> None:
        for sink in (self._curves, self._metrics, self._console):
            with contextlib.suppress(OSError):
                sink.close()

    def _append(self, row: Row) -> None:
        self._metrics_guard.attempt(lambda: self._metrics.append(row))

    def _draw(self, scalars: Mapping[str, float], step: int) -> None:
        self._curves_guard.attempt(lambda: self._curves.scalars(scalars, step + self._undone))

    def _write_text(self, tag: str, lines: Sequence[str], step: int) -> None:
        self._curves_guard.attempt(lambda: self._curves.text(tag, lines, step + self._undone))

    def _say(self, text: str) -> None:
        self._console_guard.attempt(lambda: self._console.say(text))


class _Guard:
    """It runs writes that may fail; after a failure the next one is tried a minute later."""

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


def _measures(
    report: StepReport, measurements: Mapping[str, float], throughput: Throughput
) -> dict[str, float]:
    """It returns all that is known about a step, by the names of `metrics.jsonl`."""
    seconds = measurements["seconds"]
    tokens_per_second = report.tokens / seconds
    derived = {
        "tokens_per_second": tokens_per_second,
        **throughput.measures(tokens_per_second * report.passes),
    }
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


def _rounded(value: float) -> str:
    """Shares of 1 need more digits than what counts in units."""
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


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
