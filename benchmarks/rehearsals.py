"""What the benchmarks of the watchdog share: runs of configs/gpt/rehearsal.toml with changes, and what came of them."""

import argparse
import gc
import json
from contextlib import ExitStack
from pathlib import Path

from data_pipeline.text.prepare import TextSettings, prepare_text
from launch.inspect import Run, read_run
from parallel.mesh import ParallelMesh
from pretrain.config.loader import load_config
from pretrain.config.run import RunConfig
from pretrain.errors import TrainingDiverged
from pretrain.fault_injection.plan import FaultPlan
from pretrain.ledger.file import read_ledger
from pretrain.ledger.record import Kind
from pretrain.recovery.resume import Request
from pretrain.run import train
from pretrain.run_folder import LEDGER
from pretrain.runtime.signals import StopSignals

CONFIG = Path(__file__).parents[1] / "configs/gpt/rehearsal.toml"


def make_parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """With the folders of data and runs."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/demo"), help="made where it is not there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results") / out, help="folder")
    return parser


def prepare_data(folder: Path) -> None:
    """That of `make demo`; nothing to do where it lies there already."""
    prepare_text(
        TextSettings(
            sources=("python-stdlib",),
            out=folder,
            vocabulary_size=2048,
            sequence_length=128,
            validation_fraction=0.01,
        )
    )


def make_config(options: argparse.Namespace, name: str, seed: int, *changes: str) -> RunConfig:
    """A rehearsal by this name, with changes as `--set` takes them."""
    return load_config(
        CONFIG,
        [
            f"run.folder={json.dumps(str(options.out))}",
            f"run.name={name}",
            f"run.seed={seed}",
            f"data.sources=[{{path={json.dumps(str(options.data))}}}]",
            "journal.console=none",
            "journal.tensorboard=false",
            *changes,
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


def first_alarms(run: Run, since: int) -> dict[str, int]:
    """Signal -> attempts from `since` to its first alarm."""
    found: dict[str, int] = {}
    for record in run.records:
        if record.kind is Kind.ALARM and record.attempt >= since:
            for alarm in record.fields["alarms"]:
                found.setdefault(alarm["signal"], record.attempt - since)
    return found


def print_table(rows: list[dict[str, str]]) -> None:
    """Markdown."""
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + " --- |" * len(rows[0]))
    for entry in rows:
        print("| " + " | ".join(entry.values()) + " |", flush=True)
