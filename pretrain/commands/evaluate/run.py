"""`surefoot evaluate` loads a model, runs it over data, and prints what came out."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from data_pipeline.source import Baseline
from parallel.mesh import ParallelMesh
from pretrain.commands.evaluate.given import given
from pretrain.commands.evaluate.harness import run_lm_eval
from pretrain.commands.evaluate.scoring import scoring_of
from pretrain.commands.files_to_write import check_apart_from_data, written
from pretrain.errors import ConfigurationError
from pretrain.export.opened import Usable, open_model, told
from pretrain.inference.evaluate import Evaluation, evaluate
from pretrain.inference.model import load_model
from pretrain.tasks.registry import TASKS
from pretrain.tasks.scores import Score


def run(options: argparse.Namespace) -> int:
    """It evaluates a model and prints the outcome."""
    if (options.source is None) != (options.target is None):
        raise ConfigurationError("--source and --target: one needs the other")
    if options.samples and (options.text or options.source or options.lm_eval):
        raise ConfigurationError("--samples: is for prepared data alone; leave it out")
    if options.lm_eval:
        return run_lm_eval(options.model, options.lm_eval, options.lm_eval_options)
    checkpoint = open_model(options.model)
    config = checkpoint.config
    check_apart_from_data(options, config.data)
    task = TASKS[config.model.kind]
    measure = task.source.measure(checkpoint.companion)
    print(f"surefoot evaluate: {told(options.model, checkpoint)}", file=sys.stderr)
    scored = scoring_of(checkpoint, options)
    with given(checkpoint, options) as data:
        model = load_model(
            config.model, config.data, config.precision.dtype, checkpoint.tensors, ParallelMesh.alone()
        )
        scoring = scored(model) if scored else None
        found = evaluate(model, data.batches, checkpoint.companion, measure, scoring)
        scores = scoring.scores() if scoring else ()
    baseline = data.baseline or (measure.baseline() if measure and options.text else None)
    if options.json:
        print(json.dumps(document(checkpoint, data.name, found, baseline, scores), indent=2))
    else:
        print("\n".join(lines(checkpoint, data.name, found, baseline, scores)))
    if scoring and options.alignments:  # last: where the disk is full, the figures are told all the same
        written("--alignments", options.alignments, "".join(scoring.alignments(data.places)))
    return 0


def document(
    checkpoint: Usable, name: str, found: Evaluation, baseline: Baseline | None, scores: Sequence[Score]
) -> dict[str, Any]:
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
        **{
            score.name: {"value": finite(score.value), "signature": score.signature, **score.counts}
            for score in scores
        },
        **{f"{unit}s": count for unit, count in found.units.items()},
        **{f"loss_per_{unit}": loss for unit, loss in per_unit.items()},
        **{f"perplexity_per_{unit}": exponential(loss) for unit, loss in per_unit.items()},
        "baseline": {"name": baseline.name, "loss": baseline.loss} if baseline else None,
    }
    return {key: finite(value) for key, value in values.items()}


def lines(
    checkpoint: Usable, name: str, found: Evaluation, baseline: Baseline | None, scores: Sequence[Score]
) -> Iterator[str]:
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
    for score in scores:
        yield score.line


def exponential(loss: float) -> float:
    """It returns exp of a loss; infinite where float64 has no such number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def finite(value: Any) -> Any:
    """It returns a value as JSON has it, which has no word for what is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
