"""A run that gives up leaves a report behind: why, with which weights, on which samples, to be read without the run.

runs/NAME/evidence/attempt00000512/
    verdict.json    the step, the reason, alarms, all measures of the step, budgets
    samples.jsonl   the samples from the onset of the trouble to the verdict, as text
    layers.jsonl    the distribution of every parameter's weights
    metrics.jsonl   the last rows
    config.toml
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.files import exchange, last_lines, remove, temporary_name
from data_pipeline.reading.batches import Batches
from data_pipeline.reading.ranges import SampleRange
from parallel.mesh import ParallelMesh
from pretrain.config.loader import dump_config
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.ledger.history import RunHistory
from pretrain.ledger.record import plain
from pretrain.probes.origin import LAYER, RANK, RANKS
from pretrain.probes.weights import layer_rows
from pretrain.run_folder import CONFIG, EVIDENCE, METRICS
from pretrain.runtime.agreement import from_first
from pretrain.runtime.run_folder_guard import folder_problem
from pretrain.step import StepReport, TrainState, Verdict
from pretrain.watchdog.budgets import budgets
from pretrain.watchdog.policy import MEMORY_FAULTS

SAMPLES = 128
"""Samples that are spelled out at most: the first half from the onset on, the other up to the verdict."""
METRICS_BYTES = 2**20
"""End of `metrics.jsonl` that is copied, some hundred rows; one whole row at least."""


@dataclass(frozen=True)
class CrashReport:
    """It describes the step that a run has ended at, and is equal on all ranks."""

    reason: str
    report: StepReport
    verdict: Verdict
    state: TrainState
    """Before the step."""
    history: RunHistory
    draws: tuple[SampleRange, ...]
    """Of the steps from the onset to this one."""


def last_words(report: StepReport, verdict: Verdict, history: RunHistory, layer_names: Sequence[str]) -> str:
    """It returns why the run ends; after faults of memory also where they were seen, and of gradients that are not
    finite where they come from."""
    hosts = history.suspected_hosts
    faults = any(alarm.kind in MEMORY_FAULTS for alarm in verdict.alarms)
    seen = f"; seen on {', '.join(hosts)}" if faults and hosts else ""
    return f"{verdict.reason}{seen}{origin(report, layer_names)}"


def origin(report: StepReport, layer_names: Sequence[str]) -> str:
    """It names the rank and the layer that gradients which are not finite come from; nothing where nobody has looked,
    which is in the first step that has some."""
    measures = report.measures
    if RANK not in measures:
        return ""
    others = int(measures[RANKS]) - 1
    more = f" and {others} more" if others else ""
    layer = layer_names[int(measures[LAYER])]
    return f"; gradients that are not finite come from rank {int(measures[RANK])}{more}, layer {layer}"


def write_crash_report(
    crash: CrashReport, config: RunConfig, mesh: ParallelMesh, engine: TrainEngine, batches: Batches
) -> tuple[Path | None, str]:
    """It writes down what there is, all ranks together; returns the folder, or the problem.

    Nothing that fails here may hide why the run has ended: no rank raises.
    """
    sums, problem = {}, ""
    try:
        sums = engine.parameter_sums()
    except Exception as error:  # out of memory, above all
        problem = f"rank {mesh.rank}: {error!r}"
    parts, problems = zip(*mesh.gather((sums, problem)), strict=True)
    layers = layer_rows(parts, engine.layer_names) + [{"problem": text} for text in problems if text]
    return from_first(mesh, lambda: _write_or_clear_away(crash, config, layers, batches))


def _write_or_clear_away(
    crash: CrashReport, config: RunConfig, layers: list[dict[str, Any]], batches: Batches
) -> Path:
    """It returns the folder of a complete report; it raises OSError, whatever is wrong, and leaves nothing then."""
    folder = config.run_folder / EVIDENCE / f"attempt{crash.state.attempt + 1:08d}"
    begun = folder.with_name(temporary_name(folder.name))
    if problem := folder_problem(folder.parent):
        raise OSError(problem)
    try:
        _write(begun, crash, config, layers, batches)
        if not os.path.lexists(folder):
            return begun.rename(folder)
        if not exchange(begun, folder):
            remove(folder)
            return begun.rename(folder)
        remove(begun)
        return folder
    except Exception as error:
        shutil.rmtree(begun, ignore_errors=True)
        raise OSError(f"{folder}: {error}") from error


def _write(
    folder: Path, crash: CrashReport, config: RunConfig, layers: list[dict[str, Any]], batches: Batches
) -> None:
    folder.parent.mkdir(exist_ok=True)  # not its parents: a run folder that is gone is not made again
    folder.mkdir()
    (folder / "verdict.json").write_text(json.dumps(plain(_verdict(crash, config)), indent=1), "utf-8")
    (folder / "samples.jsonl").write_text(_lines(_samples(crash.draws, batches)), "utf-8")
    (folder / "layers.jsonl").write_text(_lines(layers), "utf-8")
    (folder / METRICS).write_bytes(_last_rows(config.run_folder / METRICS))
    (folder / CONFIG).write_text(dump_config(config), "utf-8")


def _verdict(crash: CrashReport, config: RunConfig) -> dict[str, Any]:
    report, verdict = crash.report, crash.verdict
    return {
        "step": report.step,
        "attempt": crash.state.attempt + 1,
        "lineage": crash.state.lineage,
        "reason": crash.reason,
        "onset": verdict.onset,
        "alarms": [asdict(alarm) for alarm in verdict.alarms],
        "loss": report.loss,
        "gradient_norm": report.gradient_norm,
        "learning_rate": report.learning_rate,
        "measures": dict(report.measures),
        "draws": [list(range_) for range_ in crash.draws],
        "budgets": [str(budget) for budget in budgets(crash.history, config, crash.state.attempt + 1)],
        "rollbacks": [asdict(rollback) for rollback in crash.history.rollbacks],
    }


def _samples(ranges: Sequence[SampleRange], batches: Batches) -> Iterator[dict[str, Any]]:
    """It yields the samples as far as they can be read; then why no further."""
    draws = batches.unskipped(ranges)
    if len(draws) > SAMPLES:
        draws = [*draws[: SAMPLES // 2], *draws[-(SAMPLES // 2) :]]
    try:
        yield from map(asdict, batches.excerpts(draws))
    except Exception as error:  # the rest is worth having all the same
        yield {"problem": str(error) or repr(error)}


def _last_rows(metrics: Path) -> bytes:
    """It returns whole lines from the end of the file."""
    lines = last_lines(metrics, METRICS_BYTES) if metrics.exists() else []
    return b"".join(line + b"\n" for line in lines)


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    """It returns rows of JSON whose letters can be read, and what a terminal would obey is escaped."""
    return "".join(f"{_seen(json.dumps(plain(row), ensure_ascii=False))}\n" for row in rows)


def _seen(text: str) -> str:
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)
