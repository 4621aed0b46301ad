"""`surefoot evaluate` loads a model, runs it over data, and prints what came out."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from data_pipeline.batches import Batch
from data_pipeline.config import SourceConfig
from data_pipeline.errors import DataError
from data_pipeline.parsing import parsed_as, read_whole
from data_pipeline.reading.mixture import has_validation
from data_pipeline.reading.stream import ValidationSet
from data_pipeline.shown import shown
from data_pipeline.source import Baseline
from parallel.mesh import ParallelMesh
from pretrain.commands.evaluate.harness import run_lm_eval
from pretrain.errors import ConfigurationError
from pretrain.export.opened import Usable, open_model
from pretrain.inference.evaluate import Evaluation, evaluate
from pretrain.inference.model import load_model
from pretrain.run_folder import CONFIG
from pretrain.tasks.registry import TASKS

LARGEST_TEXT = 2**30
"""Bytes."""


@dataclass(frozen=True)
class Given:
    """It is what a model is evaluated on."""

    name: str
    batches: Iterable[Batch]
    baseline: Baseline | None


def run(options: argparse.Namespace) -> int:
    """It evaluates a model and prints the outcome."""
    if options.lm_eval:
        return run_lm_eval(options.model, options.lm_eval, options.lm_eval_options)
    checkpoint = open_model(options.model)
    config = checkpoint.config
    measure = TASKS[config.model.kind].source.measure(checkpoint.companion)
    certified = "certified" if checkpoint.certificate else "not certified"
    print(f"surefoot evaluate: {shown(checkpoint.folder)} ({certified})", file=sys.stderr)
    with given(checkpoint, options) as data:
        model = load_model(
            config.model, config.data, config.precision.dtype, checkpoint.tensors, ParallelMesh.alone()
        )
        found = evaluate(model, data.batches, measure)
    baseline = data.baseline or (measure.baseline() if measure and options.text else None)
    if options.json:
        print(json.dumps(document(checkpoint, data.name, found, baseline), indent=2))
    else:
        print("\n".join(lines(checkpoint, data.name, found, baseline)))
    return 0


@contextmanager
def given(checkpoint: Usable, options: argparse.Namespace) -> Iterator[Given]:
    """It opens what the options ask for.

    Raises:
        ConfigurationError: the model reads no text.
        DataError: there is no such data, or it is not for this model.
    """
    if options.text:
        yield Given(f"text {shown(options.text)}", text_batches(checkpoint, options.text), None)
        return
    data = checkpoint.config.data
    if options.data:
        with parsed_as(ConfigurationError, "--data"):
            split = SourceConfig(path=options.data)
        data = data.model_copy(update={"sources": (split,), "validation": (split,)})
    elif not checkpoint.has(CONFIG):
        raise DataError(f"{shown(checkpoint.folder)} has no data of its own; give it --data or --text")
    if not has_validation(data):
        raise DataError("the run's data has no validation split; give other data (--data) or a text (--text)")
    samples = options.samples or (None if options.data else checkpoint.config.evaluation.samples)
    source = TASKS[checkpoint.config.model.kind].source
    held_out = ValidationSet(source, data, samples=samples, data_rank=0, data_size=1)
    try:
        check_companions(checkpoint, held_out)
        name = ", ".join(shown(entry.path) for entry in data.validation or data.sources)
        batches = chain.from_iterable(held_out)
        yield Given(f"validation data of {name}", batches, held_out.baseline if held_out.whole else None)
    finally:
        held_out.close()


def text_batches(checkpoint: Usable, path: Path) -> Iterator[Batch]:
    """It returns the batches of a text file. It raises what `given` does."""
    config = checkpoint.config
    codec = TASKS[config.model.kind].text(config.model, config.data, checkpoint.companion)
    if codec is None:
        raise ConfigurationError(f"--text: a model of kind {config.model.kind} reads no text; give it --data")
    try:
        with parsed_as(DataError, f"--text {path}"):
            tokens = codec.encode(read_whole(path, LARGEST_TEXT).decode())
    except OSError as error:
        raise DataError(f"--text {shown(path)}: {error.strerror}") from error
    return codec.batches(tokens, config.data.micro_batch_size)


def check_companions(checkpoint: Usable, data: ValidationSet) -> None:
    """It raises DataError for data that was made with another tokenizer, say, than the model's."""
    for name, content in data.companions.items():
        if checkpoint.has(name) and checkpoint.companion(name) != content:
            raise DataError(f"the data was made with another {name} than {shown(checkpoint.folder)} has")


def document(checkpoint: Usable, name: str, found: Evaluation, baseline: Baseline | None) -> dict[str, Any]:
    """It returns the outcome as JSON has it."""
    per_unit = {unit: found.loss_per(unit) for unit in found.units}
    values: dict[str, Any] = {
        "checkpoint": str(checkpoint.folder),
        "step": checkpoint.step,
        "certified": checkpoint.certificate is not None,
        "data": name,
        "loss": found.loss,
        "loss_unit": checkpoint.config.model.loss_unit,
        "targets": found.targets,
        **found.metrics,
        **{f"{unit}s": count for unit, count in found.units.items()},
        **{f"loss_per_{unit}": loss for unit, loss in per_unit.items()},
        **{f"perplexity_per_{unit}": exponential(loss) for unit, loss in per_unit.items()},
        "baseline": {"name": baseline.name, "loss": baseline.loss} if baseline else None,
    }
    return {key: finite(value) for key, value in values.items()}


def lines(checkpoint: Usable, name: str, found: Evaluation, baseline: Baseline | None) -> Iterator[str]:
    """It yields the outcome as people read it."""
    model = checkpoint.config.model
    amounts = [f"{found.targets:,} {model.targets}", *(f"{n:,} {unit}s" for unit, n in found.units.items())]
    yield f"{name}: {', '.join(amounts)}"
    beside = f" ({baseline.name}: {baseline.loss:.4f})" if baseline else ""
    yield f"loss          {found.loss:.6f} {model.loss_unit}{beside}"
    for metric, value in found.metrics.items():
        yield f"{metric:13} {value:.6g}"
    for unit in found.units:
        loss = found.loss_per(unit)
        yield f"per {unit:9} {loss / math.log(2):.6f} bits, perplexity {exponential(loss):.6g}"


def exponential(loss: float) -> float:
    """It returns exp of a loss; infinite where float64 has no such number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def finite(value: Any) -> Any:
    """It returns a value as JSON has it, which has no word for what is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
