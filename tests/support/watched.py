"""These runs are under the watchdog, with planted faults."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.runs import run_config
from support.training import Layout, make_mesh

from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, TrainingDiverged
from pretrain.fault_injection.plan import FaultPlan
from pretrain.ledger.file import read_ledger
from pretrain.ledger.record import Kind, Record
from pretrain.recovery.resume import Request
from pretrain.run import train
from pretrain.run_folder import LEDGER
from pretrain.runtime.signals import StopSignals

STEPS = 30


WATCHDOG = {
    "window": 16,
    "horizon": 6,
    "margin": 2,
    "skip_after": 3,
    "memory_every_steps": 4,
    "skipped_fraction": 0.9,
}


def watched(layout: Layout, folder: Path, corpus: Path, **watchdog: Any) -> RunConfig:
    return run_config(
        layout,
        folder,
        corpus,
        run={"folder": str(folder), "steps": STEPS},
        checkpoint={"every_steps": 10, "keep_last": 10},
        evaluation={"every_steps": 15, "samples": 12},
        watchdog={**WATCHDOG, **watchdog},
    )


def run(config: RunConfig, fault: str | None = None, tag: str | None = None, force: bool = False) -> str:
    plan = FaultPlan.parse(fault, config.run.steps) if fault else None
    request = Request(tag=tag, force_condemned=force, fault=plan)
    try:
        with StopSignals() as signals, ExitStack() as stack:
            train(config, make_mesh(config.parallel), signals, stack, request=request)
    except CheckpointError as error:
        return f"refused: {error}"
    except TrainingDiverged as error:
        return f"diverged: {error}"
    return "finished"


def story(folder: Path) -> list[Record]:
    return list(read_ledger(folder / "test" / LEDGER))


def kinds(folder: Path) -> list[str]:
    return [str(record.kind) for record in story(folder)]


def one(folder: Path, kind: Kind) -> Record:
    (record,) = [record for record in story(folder) if record.kind is kind]
    return record


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    base = config.model_dump(mode="json")
    return RunConfig.model_validate({**base, **{name: {**base[name], **s} for name, s in sections.items()}})
