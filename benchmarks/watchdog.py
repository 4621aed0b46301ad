"""Planted faults: what the watchdog notices and does, and what a run comes to with it and without.

    python benchmarks/watchdog.py                                        all faults, seed 0
    python benchmarks/watchdog.py --seeds 0 1 2 --faults poisoned_samples

Each fault is planted in configs/gpt/rehearsal.toml on one rank, three ways: not at all (the twin), under the watchdog,
and under one that only tells (`dry_run`), which as far as the weights go is a run without (non-finite updates are
withheld there too). The rules of other systems (spike_rules.py) look at the losses of that last run.

Columns: steps from the first one with the fault to the first alarm or withheld update; what was done; tokens undone,
samples skipped; final validation loss relative to the twin's, with the watchdog and without; for each rule the steps
until it first acts after the fault began, or `early` where it had acted on a healthy step before; the first alarm of
each signal in the run that was only told. Runs that have ended are not run again.
"""

import argparse
import gc
import json
import math
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from spike_rules import RULES

from data_pipeline.prepare_text import TextSettings, prepare_text
from launch.inspect import Run, read_run
from parallel.mesh import ParallelMesh
from pretrain.__main__ import Request, train
from pretrain.config import RunConfig
from pretrain.config_loader import load_config
from pretrain.errors import TrainingDiverged
from pretrain.signals import StopSignals
from pretrain.watchdog.fault_plan import FAULTS, FaultPlan
from pretrain.watchdog.ledger import LEDGER, read_ledger
from pretrain.watchdog.record import Kind

CONFIG = Path(__file__).parents[1] / "configs/gpt/rehearsal.toml"
START = 400
ONE_REPLICA = tuple(name for name in FAULTS if name != "replica_flip")
"""A single rank has no second replica to differ from."""
SIGNS = (Kind.ALARM, Kind.VETO, Kind.ROLLBACK_INTENT)
DEEDS = {Kind.VETO: "veto", Kind.ROLLBACK_INTENT: "rollback", Kind.STOPPED: "stop"}


def make_config(options: argparse.Namespace, seed: int, name: str, *, dry_run: bool) -> RunConfig:
    return load_config(
        CONFIG,
        [
            f"run.folder={json.dumps(str(options.out))}",
            f"run.name={name}-seed{seed}",
            f"run.seed={seed}",
            f"data.sources=[{{path={json.dumps(str(options.data))}}}]",
            f"watchdog.dry_run={str(dry_run).lower()}",
            "journal.console=none",
            "journal.tensorboard=false",
        ],
    )


def one_run(config: RunConfig, mesh: ParallelMesh, fault: str | None) -> Run:
    """Train, unless it is done already, and read what came of it."""
    ledger = config.run_folder / LEDGER
    if not (ledger.exists() and read_ledger(ledger)[-1].kind in (Kind.DONE, Kind.STOPPED)):
        plan = FaultPlan.parse(fault, config.run.steps) if fault else None
        try:
            with StopSignals() as signals, ExitStack() as stack:
                train(config, mesh, signals, stack, request=Request(fault=plan))
        except TrainingDiverged as error:
            print(f"{config.run.name}: {error}", flush=True)
        gc.collect()
    return read_run(config.run_folder)


def losses(run: Run, folder: Path) -> list[float]:
    """Of every attempt, in order."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [math.nan if row["loss"] is None else row["loss"] for row in rows if "loss" in row]


def first_alarms(run: Run, since: int) -> dict[str, int]:
    """Signal -> attempts from `since` to its first alarm."""
    found: dict[str, int] = {}
    for record in run.records:
        if record.kind is Kind.ALARM and record.attempt >= since:
            for alarm in record.fields["alarms"]:
                found.setdefault(alarm["signal"], record.attempt - since)
    return found


def delays_of_rules(course: list[float]) -> Iterator[str]:
    for make in RULES:
        rule = make()
        acted = [step for step, loss in enumerate(course, start=1) if rule.look(step, loss)]
        late = [step - START for step in acted if step >= START]
        yield "early" if acted and acted[0] < START else str(late[0]) if late else "-"


def row(fault: str, seed: int, runs: dict[str, Run], course: list[float]) -> dict[str, str]:
    guarded = runs["guarded"]
    signs = [r.attempt - START for r in guarded.records if r.kind in SIGNS and r.attempt >= START]
    deeds = [word for kind, word in DEEDS.items() for r in guarded.records if r.kind is kind]
    lost = guarded.lost
    tokens = guarded.tokens(lost.undone_steps + lost.withheld_updates)

    def relative(name: str) -> str:
        ours, twin = runs[name].last("validation_loss"), runs["clean"].last("validation_loss")
        return f"{ours / twin - 1:+.2%}" if ours and twin else "none"

    return {
        "fault": fault,
        "seed": str(seed),
        "delay": str(signs[0]) if signs else "-",
        "done": ", ".join(f"{deeds.count(word)} {word}" for word in dict.fromkeys(deeds)) or "nothing",
        "undone": f"{tokens:,}",
        "skipped": f"{lost.skipped_samples:,}",
        "loss": relative("guarded"),
        "without": relative("told"),
        **dict(zip((make().name for make in RULES), delays_of_rules(course), strict=True)),
        "first alarms": ", ".join(
            f"{name} {step}" for name, step in first_alarms(runs["told"], START).items()
        ),
    }


def print_table(rows: list[dict[str, str]]) -> None:
    """Markdown."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for entry in rows:
        print("| " + " | ".join(entry.values()) + " |", flush=True)


def prepare_data(folder: Path) -> None:
    """That of `make demo`; nothing to do where it lies there already."""
    prepare_text(
        TextSettings(
            sources=("python-stdlib",),
            out=folder,
            vocabulary_size=2048,
            tokenizer=None,
            sequence_length=128,
            validation_fraction=0.01,
            field="text",
            workers=1,
            shard_samples=65536,
            seed=0,
            overwrite=False,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", nargs="+", choices=ONE_REPLICA, default=ONE_REPLICA, metavar="FAULT")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="made where it is not there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/watchdog"), help="folder")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prepare_data(options.data)
    first = make_config(options, options.seeds[0], "clean", dry_run=False)
    mesh = ParallelMesh.create(first.parallel)
    rows = []
    for seed in options.seeds:
        clean = one_run(make_config(options, seed, "clean", dry_run=False), mesh, None)
        for fault in options.faults:
            plan = f"{fault}@{START}"
            guarded, told = (
                make_config(options, seed, f"{fault}-{word}", dry_run=word == "told")
                for word in ("guarded", "told")
            )
            runs = {
                "clean": clean,
                "guarded": one_run(guarded, mesh, plan),
                "told": one_run(told, mesh, plan),
            }
            rows.append(row(fault, seed, runs, losses(runs["told"], told.run_folder)))
            print(json.dumps(rows[-1]), flush=True)
    print_table(rows)
    (options.out / "watchdog.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
