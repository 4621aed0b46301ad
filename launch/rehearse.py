"""`surefoot rehearse` trains with a planted fault, beside an undisturbed twin, to show what the watchdog does."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.paths import escaped
from launch.command import LaunchOptions, as_read_argument, inline_toml
from launch.inspect import Run, document, read_run, state
from launch.machine import this_machine
from launch.plan_report import Rows, print_rows
from launch.preflight import check_launch
from launch.process import note, run_to_end
from launch.schedulers import launch_command
from pretrain.config.as_read import AsRead
from pretrain.config.loader import Table, apply_overrides, config_of, read_settings
from pretrain.config.run import RunConfig
from pretrain.errors import Preempted, TrainingDiverged
from pretrain.fault_injection.plan import FAULTS, FaultPlan
from pretrain.ledger.describe import describe
from pretrain.ledger.record import Kind, Record
from pretrain.plan.arming import arming_warnings, watched_from
from pretrain.plan.plan import plan

REHEARSALS = "rehearsals"
"""Rehearsals lie in this folder, in that of all runs."""
TWIN = "clean"
"""The run without the fault has this name."""
SIGNS = (Kind.SUSPECT, Kind.ALARM, Kind.VETO, Kind.ROLLBACK_INTENT)
DEEDS = {
    Kind.VETO: ("update withheld", "updates withheld"),
    Kind.ROLLBACK_INTENT: ("rollback", "rollbacks"),
    Kind.LEARNING_RATE_EDIT: ("learning rate lowered", "learning rates lowered"),
    Kind.STOPPED: ("stop", "stops"),
}
"""These are counted, with words for one and for several."""


@dataclass(frozen=True)
class Rehearsal:
    """A rehearsal shows what came of a fault."""

    fault: FaultPlan
    clean: Run
    faulted: Run

    @property
    def signs(self) -> list[Record]:
        """It returns what was noticed once the fault was there, from the first suspicion on."""
        return [record for record in of_kinds(self.faulted, SIGNS) if record.attempt >= self.fault.step]

    @property
    def false_signs(self) -> list[Record]:
        """It returns alarms and deeds where nothing was wrong: in the twin, or before the fault."""
        early = [record for record in self.faulted.records if record.attempt < self.fault.step]
        acted = (Kind.ALARM, *DEEDS)
        return [record for record in (*self.clean.records, *early) if record.kind in acted]

    @property
    def delay(self) -> int | None:
        """It counts steps from the first one with the fault to the first sign; it is None if there was no sign."""
        return self.signs[0].attempt - self.fault.step if self.signs else None

    @property
    def relative_loss(self) -> float | None:
        """It is the final validation loss over the twin's, less 1, or None where one of them has none."""
        ours, theirs = (run.last("validation_loss") for run in (self.faulted, self.clean))
        return ours / theirs - 1 if ours and theirs else None


def rehearse(wanted: LaunchOptions, fault: str, as_json: bool) -> int:
    """It trains twice, without the fault and with it, in new folders, and prints what came of it.

    It returns an exit code. A run that the fault has ended in good order, with code 5, is an answer like any other.
    It raises ConfigurationError before anything is started.
    """
    if as_json:
        wanted = replace(wanted, overrides=(*wanted.overrides, "journal.console=none"))
    table, problems = read_settings(wanted.config, wanted.overrides)
    config = config_of(wanted.config, table, problems)
    planned = FaultPlan.parse(fault, config.run.steps)
    planned.check(config.model.outline(config.data))
    for warning in warnings(config, planned):
        note(f"warning: {warning}")
    home = fresh_folder(config)
    for name, text in ((TWIN, ""), (planned.name, str(planned))):
        code = train(at(wanted, home, name, text), table)
        if code == Preempted.exit_code:
            note(
                f"a rehearsal is not gone on with: the same command begins a new one; this one lies in {home}"
            )
        if code and not (text and code == TrainingDiverged.exit_code):
            return code
    rehearsal = Rehearsal(planned, read_run(home / TWIN), read_run(home / planned.name))
    if as_json:
        print(json.dumps(as_document(rehearsal), indent=2))
    else:
        print_rows(
            [*rows(rehearsal), ("folders", f"{home}: {own_name()} inspect {home / planned.name} tells more")]
        )
    return 0


def warnings(config: RunConfig, fault: FaultPlan) -> Iterator[str]:
    """It yields why the watchdog may not notice a fault: there is nothing yet to compare with."""
    yield from arming_warnings(config)
    begin = watched_from(config)
    if FAULTS[fault.name].drift and fault.step < begin:
        yield (
            f"--fault {fault}: drift is looked for from step {begin:,} on, so that a fault which shows as a drift "
            "alone is not noticed before; plant it later, take a longer run (run.steps) or a smaller watchdog.window"
        )


def own_name() -> str:
    """It returns how this command was called, if it is not found by its name alone."""
    return "surefoot" if shutil.which("surefoot") else sys.argv[0]


def fresh_folder(config: RunConfig) -> Path:
    """It returns a folder among those of rehearsals, beside the runs themselves, that does not exist yet."""
    number = 1
    while (folder := config.run.folder / REHEARSALS / f"{config.run.name}-{number}").exists():
        number += 1
    return folder


def at(wanted: LaunchOptions, home: Path, name: str, fault: str) -> LaunchOptions:
    """It returns the same options for a run `home/name` with a fault, or none."""
    place = (f"run.folder={inline_toml(escaped(home))}", f"run.name={name}")
    arguments = ("--fault", fault) if fault else ()
    return replace(wanted, overrides=(*wanted.overrides, *place), arguments=arguments)


def train(wanted: LaunchOptions, read: Table) -> int:
    """It trains to the end with the settings that were `read`, in a place of its own; it returns the exit code."""
    table = deepcopy(read)
    config = config_of(wanted.config, table, apply_overrides(table, wanted.overrides))
    wanted = replace(wanted, arguments=(as_read_argument(AsRead.of(table)), *wanted.arguments))
    command = launch_command(wanted, this_machine(), config.parallel.model_size)
    plan(config, command.world_size)
    check_launch(command, wanted)
    note(f"rehearsal: {config.run_folder}")
    return run_to_end(command, wanted, config.run_folder, config.run.steps)


def of_kinds(run: Run, kinds: Sequence[Kind]) -> Iterator[Record]:
    """It returns the records of these kinds."""
    return (record for record in run.records if record.kind in kinds)


# For people


def rows(rehearsal: Rehearsal) -> Rows:
    """It yields (what, value) of what came of the fault."""
    fault, faulted = rehearsal.fault, rehearsal.faulted
    last = fault.step + fault.steps - 1
    when = f"step {fault.step:,}" + (f" to {last:,}" if fault.steps > 1 else "")
    yield "fault", f"{fault.name}, {when}: {FAULTS[fault.name].description}"
    yield "noticed", noticed(rehearsal)
    yield "done", deeds(faulted) or "nothing"
    lost = faulted.lost
    yield "tokens lost", tokens_lost(faulted, lost.wasted_steps, lost.skipped_samples)
    yield "end", state(faulted)
    yield "validation loss", losses(rehearsal)
    yield "false alarms", f"{len(rehearsal.false_signs)} in the twin and before the fault"
    signs = [*rehearsal.false_signs, *rehearsal.signs]
    sentences = [(record, sentence) for record in signs for sentence in describe(record)]
    for number, (record, sentence) in enumerate(sentences):
        title = "" if number else "story"
        yield title, f"step {record.step:,}, attempt {record.attempt:,}: {sentence}"


def noticed(rehearsal: Rehearsal) -> str:
    """It says when the fault was noticed, and by what."""
    if not rehearsal.signs:
        return "no"
    first, delay = rehearsal.signs[0], rehearsal.delay
    after = f"{delay:,} step{'s' * (delay != 1)} after the first with the fault" if delay else "at once"
    return f"{after}, at step {first.step:,}: {'; '.join(describe(first))}"


def deeds(run: Run) -> str:
    """It counts what the watchdog has done."""
    counts = {kind: len(list(of_kinds(run, [kind]))) for kind in DEEDS}
    return ", ".join(f"{count:,} {DEEDS[kind][count > 1]}" for kind, count in counts.items() if count)


def tokens_lost(run: Run, steps: int, samples: int) -> str:
    """It says how much training was lost."""
    data = run.config.data if run.config else None
    tokens = f"{run.tokens(steps):,} in {steps:,} steps" if data else f"those of {steps:,} steps"
    return f"{tokens}; {samples:,} samples skipped"


def losses(rehearsal: Rehearsal) -> str:
    """It gives the validation losses of both runs, and how they compare."""
    named = [("with the fault", rehearsal.faulted), ("without", rehearsal.clean)]
    values = [(name, run.last("validation_loss")) for name, run in named]
    words = [f"{value:.4f} {name}" if value is not None else f"none {name}" for name, value in values]
    relative = rehearsal.relative_loss
    return ", ".join(words) + (f": {relative:+.2%}" if relative is not None else "")


# For scripts


def as_document(rehearsal: Rehearsal) -> dict[str, Any]:
    """It returns the same in plain JSON types, with the whole histories of both runs."""
    return {
        "fault": str(rehearsal.fault),
        "delay": rehearsal.delay,
        "false_alarms": len(rehearsal.false_signs),
        "relative_loss": rehearsal.relative_loss,
        "clean": document(rehearsal.clean),
        "faulted": document(rehearsal.faulted),
    }
