"""`surefoot inspect` shows what a run has been through, for people and for scripts."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.history import RETIRED, Checkpoint, Ending, Lineage, Lost, checkpoints, ending, lineages, lost
from launch.metrics import last_rows
from launch.plan_report import Rows, print_rows
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.ledger.describe import describe
from pretrain.ledger.file import read_ledger
from pretrain.ledger.history import RunHistory, fold
from pretrain.ledger.record import Kind, Record
from pretrain.run_folder import CHECKPOINTS, CONFIG, EVIDENCE, LEDGER, METRICS
from pretrain.step import Action
from pretrain.watchdog.budgets import Budget, budgets


@dataclass(frozen=True)
class Run:
    """It holds all that the folder of a run tells."""

    folder: Path
    config: RunConfig | None
    """It is None where this version cannot read it."""
    records: tuple[Record, ...]
    checkpoints: tuple[Checkpoint, ...]
    rows: list[dict[str, Any]]
    """These are the last rows of its metrics."""

    @cached_property
    def history(self) -> RunHistory:
        """It is what the ledger adds up to."""
        return fold(self.records)

    @cached_property
    def step(self) -> int:
        """It is the last step that was taken: the one that ends a run or takes it back was not. Where the metrics are
        lost, it is the last one that the ledger tells of."""
        known = self.records[-1].step if self.records else 0
        last = next((row for row in reversed(self.rows) if "loss" in row), {"step": known})
        if last.get("verdict") == Action.ROLLBACK and self.history.rollbacks:
            return self.history.rollbacks[-1].target_step
        refused = last.get("verdict") in (Action.HALT, Action.ROLLBACK)
        return int(last["step"]) - refused

    @cached_property
    def attempts(self) -> int:
        """It counts the steps that were computed, those undone included."""
        return max([self.history.attempt, self.step, *(row.get("attempt", 0) for row in self.rows)])

    @cached_property
    def ending(self) -> Ending:
        """It says how the last session has ended."""
        return ending(self.records)

    @cached_property
    def lineages(self) -> tuple[Lineage, ...]:
        """It lists the lineages of the run."""
        return lineages(self.records, self.step)

    @cached_property
    def evidence(self) -> tuple[str, ...]:
        """It lists the folders that the run has left where it gave up, oldest first."""
        return tuple(map(str, sorted((self.folder / EVIDENCE).glob("attempt*"))))

    @cached_property
    def lost(self) -> Lost:
        """It sums what trouble has cost."""
        return lost(self.records, self.history)

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """It lists what the watchdog may still spend; without a configuration nobody knows."""
        return budgets(self.history, self.config, self.attempts) if self.config else ()

    def tokens(self, steps: int) -> int | None:
        """It counts the tokens of so many steps."""
        data = self.config.data if self.config else None
        return steps * data.global_batch_size * data.tokens_per_sample if data else None

    def last(self, name: str) -> float | None:
        """It returns the last value of a measure that the metrics have."""
        return next((row[name] for row in reversed(self.rows) if row.get(name) is not None), None)


def inspect(folder: Path, as_json: bool) -> int:
    """It prints the history of the run in `folder`.

    It raises ConfigurationError if this is no run's folder, and CheckpointError if its ledger was tampered with.
    """
    run = read_run(folder)
    try:
        if as_json:
            print(json.dumps(document(run), indent=2))
        else:
            print_history(run)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def print_history(run: Run) -> None:
    """It prints the history for people."""
    print_rows(summary(run))
    for title, rows in sections(run):
        if lines := list(rows):
            print(f"\n{title}")
            print_rows(lines)


def read_run(folder: Path) -> Run:
    """It reads a run, and raises ConfigurationError if there is nothing of one in `folder` or it cannot be read."""
    try:
        if not any((folder / name).is_file() for name in (LEDGER, CONFIG, METRICS)):
            raise ConfigurationError(
                f"{folder}: not the folder of a run, which has {LEDGER} or {CONFIG} in it; give run.folder/run.name of "
                "its configuration, such as runs/NAME"
            )
        records = read_ledger(folder / LEDGER) if (folder / LEDGER).exists() else ()
        found = checkpoints(folder / CHECKPOINTS, records)
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return Run(folder, read_config(folder / CONFIG), records, found, last_rows(folder / METRICS) or [])


def read_config(path: Path) -> RunConfig | None:
    """It returns None for a configuration of another version, or where there is none."""
    try:
        return load_config(path)
    except ConfigurationError:
        return None


# For people


def summary(run: Run) -> Rows:
    """It yields (what, value) in short."""
    yield "run", f"{run.config.run.name if run.config else run.folder.resolve().name}, in {run.folder}"
    yield "state", state(run)
    yield "steps", progress(run)
    yield from ((name, f"{value:.4f}") for name, value in losses(run).items() if value is not None)
    if not run.records:
        yield "ledger", "none: it was removed, or the run has not begun yet"
        return
    if run.step and not run.rows:
        yield "metrics", "none can be read: losses are not known, steps are those of the ledger"
    yield "lost", loss_of_work(run)
    yield "skipped", f"{run.lost.skipped_samples:,} samples{share_of_run(run, run.lost.skipped_samples)}"
    if run.evidence:
        yield "evidence", run.evidence[-1]
    if run.history.pending:
        yield "pending", f"a rollback to step {run.history.pending.target_step:,} is decided and not done"


def state(run: Run) -> str:
    """It says whether the run goes on, and how it has ended if not."""
    end = run.ending
    if end.state == "open":
        seen = max((path.stat().st_mtime for path in existing(run.folder)), default=0.0)
        return f"running, or killed; the last sign of life is of {datetime.fromtimestamp(seen):%F %T}"
    code = "" if end.state == "finished" else f" with code {end.code}"
    return f"{end.state}{code}" + (f": {end.reason}" if end.reason else "")


def existing(folder: Path) -> Iterator[Path]:
    """It returns the files that grow while a run lives."""
    return (folder / name for name in (METRICS, LEDGER) if (folder / name).exists())


def progress(run: Run) -> str:
    """It says how far the run has come, and by how many detours."""
    total = f" of {run.config.run.steps:,}" if run.config else ""
    undone = (
        f", in {run.attempts:,} attempts and {len(run.lineages)} lineages" if len(run.lineages) > 1 else ""
    )
    return f"{run.step:,}{total}{undone}"


def losses(run: Run) -> dict[str, float | None]:
    """It returns the last losses by name."""
    return {"loss": run.last("loss"), "validation loss": run.last("validation_loss")}


def loss_of_work(run: Run) -> str:
    """It says how much training trouble has cost."""
    undone, withheld = run.lost.undone_steps, run.lost.withheld_updates
    tokens = run.tokens(run.lost.wasted_steps)
    in_tokens = "" if tokens is None else f" = {tokens:,} tokens"
    return f"steps undone {undone:,}, updates withheld {withheld:,}{in_tokens}"


def share_of_run(run: Run, samples: int) -> str:
    """It says what part of the run so many samples are."""
    if run.config is None:
        return ""
    total = run.config.run.steps * run.config.data.global_batch_size
    return f" = {samples * run.config.data.tokens_per_sample:,} tokens, {samples / total:.2%} of the run's"


def sections(run: Run) -> Iterator[tuple[str, Rows]]:
    """It yields what there is to show at length, with titles."""
    yield "lineages", lineage_rows(run)
    yield "checkpoints", checkpoint_rows(run)
    yield "budgets", budget_rows(run)
    yield "story", story_rows(run)


def lineage_rows(run: Run) -> Rows:
    """It yields a row a lineage."""
    for lineage in run.lineages:
        end = f", {lineage.end}" if lineage.end else ""
        yield f"  {lineage.number}", f"steps {lineage.first_step:,} to {lineage.last_step:,}{end}"


def checkpoint_rows(run: Run) -> Rows:
    """It yields a row a checkpoint, and one for all that were deleted in good order."""
    retired = [checkpoint for checkpoint in run.checkpoints if checkpoint.health == RETIRED]
    if retired:
        yield f"  {RETIRED}", f"{len(retired)}, the last one {retired[-1].tag}"
    for checkpoint in run.checkpoints:
        if checkpoint.health != RETIRED:
            words = [checkpoint.health, *(["latest"] * checkpoint.latest), *filter(None, [checkpoint.note])]
            yield f"  {checkpoint.tag}", ", ".join(words)


def budget_rows(run: Run) -> Rows:
    """It yields a row a budget."""
    for budget in run.budgets if run.records else ():
        yield f"  {budget.key}", f"{budget.left:,} left of {budget.allowed:,} {budget.what}"


def story_rows(run: Run) -> Rows:
    """It yields a row for each sentence of the ledger."""
    width = len(f"{max((record.step for record in run.records), default=0):,}")
    for record in run.records:
        for sentence in describe(record):
            when = datetime.fromisoformat(record.time).astimezone()
            yield f"  {when:%F %T}", f"step {record.step:>{width},}  {sentence}"


# For scripts


def document(run: Run) -> dict[str, Any]:
    """It returns the whole history in plain JSON types; the ledger has what is not finite as a word."""
    return {
        "folder": str(run.folder),
        "step": run.step,
        "steps": run.config.run.steps if run.config else None,
        "attempts": run.attempts,
        "loss": run.last("loss"),
        "validation_loss": run.last("validation_loss"),
        "ending": asdict(run.ending),
        "lost": {
            **asdict(run.lost),
            "undone_tokens": run.tokens(run.lost.undone_steps),
            "skipped": [list(range_) for range_ in run.history.skips],
        },
        "lineages": [asdict(lineage) for lineage in run.lineages],
        "checkpoints": [asdict(checkpoint) for checkpoint in run.checkpoints],
        "alarms": [
            entry for record in run.records if record.kind is Kind.ALARM for entry in alarm_documents(record)
        ],
        "vetoes": [record_document(record) for record in run.records if record.kind is Kind.VETO],
        "rollbacks": [{**asdict(rollback), "undone": rollback.undone} for rollback in run.history.rollbacks],
        "pending": asdict(run.history.pending) if run.history.pending else None,
        "budgets": [{**asdict(budget), "left": budget.left} for budget in run.budgets],
        "evidence": list(run.evidence),
        "records": [record_document(record) for record in run.records],
    }


def alarm_documents(record: Record) -> list[dict[str, Any]]:
    """It returns the alarms of a record, each with the step that it is of."""
    where = {"step": record.step, "attempt": record.attempt, "lineage": record.lineage, "time": record.time}
    return [{**where, **fields} for fields in record.fields["alarms"]]


def record_document(record: Record) -> dict[str, Any]:
    """It returns a record as a flat object."""
    header = {name: getattr(record, name) for name in ("seq", "time", "kind", "step", "attempt", "lineage")}
    return {**header, **record.fields}
