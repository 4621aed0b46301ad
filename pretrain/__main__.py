"""The composition root: every rank of a run starts here, under `deepspeed --module`, `torchrun -m` or `srun`.

python -m pretrain CONFIG [--set section.key=value]...
"""

import argparse
import hashlib
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.reading.stream import BatchStream, ValidationSet
from parallel.mesh import ParallelMesh, describe_world, is_peer_loss
from pretrain.checkpoint.checkpoint import LIBRARIES, Checkpointer
from pretrain.checkpoint.compatibility import Compatibility
from pretrain.checkpoint.random_state import seed_generators
from pretrain.config.loader import changed_settings, dump_config, load_config
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.errors import (
    DATA_EXIT_CODE,
    ConfigurationError,
    PeerLost,
    Preempted,
    SurefootError,
    TrainingDiverged,
)
from pretrain.fault_injection.faults import make_fault
from pretrain.fault_injection.plan import FaultPlan
from pretrain.ledger.describe import describe
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, Record
from pretrain.metrics.logger import FileLogger, MetricsLogger, SilentLogger
from pretrain.metrics.summary import closing_lines, start_lines
from pretrain.plan.plan import Plan, plan
from pretrain.recovery.candidates import CheckpointManager, record
from pretrain.recovery.resume import PLAIN, Request, in_words, restore, resumed, take_up
from pretrain.runtime.agreement import agreed
from pretrain.runtime.durable_files import write_durably
from pretrain.runtime.heartbeat import Heartbeat
from pretrain.runtime.kernels import detect_kernels
from pretrain.runtime.run_lock import RunLock
from pretrain.runtime.signals import StopSignals
from pretrain.runtime.stacks import stacks_on_request
from pretrain.step import TrainState
from pretrain.trainer import Collaborators, RunJudge, Trainer
from pretrain.watchdog.finite import judge_finite
from pretrain.watchdog.watchdog import Watchdog

CONFIG = "config.toml"


def train(
    config: RunConfig,
    mesh: ParallelMesh,
    signals: StopSignals,
    stack: ExitStack,
    judge: RunJudge | None = None,
    request: Request = PLAIN,
) -> TrainState:
    """Put a run together and train it to its end; `stack` closes what was opened.

    `judge` stands in for the watchdog's.
    """
    layout = plan(config, mesh.world_size)
    seed_generators(config.run.seed, mesh.rank)
    # Data first: a run whose data is missing leaves no folder.
    batches, validation = agreed(mesh, lambda: open_data(config, mesh, stack))
    fault = make_fault(request.fault, config, mesh)
    batches = fault.wrap_batches(batches)
    changes = mesh.gather(agreed(mesh, lambda: open_run_folder(config, mesh, stack)))[0]
    notes = [f"settings have changed since the last session: {in_words(changes)}"] if changes else []
    stack.enter_context(stacks_on_request(config.run_folder, mesh.rank))
    heartbeat = stack.enter_context(Heartbeat(config.run_folder, mesh.rank, request.port))
    ledger = RunLedger.open(config.run_folder, mesh, stack, lambda record: notes.extend(describe(record)))
    kernels = detect_kernels()
    engine = assemble_engine(config, layout, mesh, kernels)
    notes += [*start_lines(config, layout, mesh, kernels), *layout.warnings]
    checkpointer = Checkpointer(
        config.run_folder / "checkpoints",
        config,
        mesh,
        Compatibility.of(config, mesh, batches.fingerprint),
        report=notes.append,
    )
    watchdog = Watchdog(config)
    if why := ledger.history.stopped:
        notes.append(f"the last session had given up: {why}")
    restored = restore(checkpointer, engine, ledger, request)
    if restored:
        state = take_up(restored, request, changes, batches, watchdog, ledger)
    else:
        state = resumed(TrainState(), ledger)
        ledger.append(record(Kind.RUN_START, state, **identity_fields(config, layout)))
    agreed(mesh, lambda: write_config(config, mesh))
    journal = stack.enter_context(open_journal(config, layout, mesh, state))
    for note in notes:
        journal.event(state.step, note)
    ledger.report = lambda record: report_record(journal, record)
    checkpoints = CheckpointManager(config, engine, checkpointer, watchdog, ledger)
    if judge is None and not config.watchdog.enabled:
        judge = judge_finite
    trainer = Trainer(
        config,
        Collaborators(
            mesh=mesh,
            engine=engine,
            batches=batches,
            validation=validation,
            checkpoints=checkpoints,
            journal=journal,
            watchdog=watchdog,
            ledger=ledger,
            signals=signals,
            heartbeat=heartbeat,
            fault=fault,
            hosts=mesh.gather(socket.gethostname()),
            judge=judge,
        ),
    )
    state = trainer.take_up(state)
    if restored:
        restored.restore_random_state()
    state = run_to_its_end(trainer, state, ledger)
    for line in closing_lines(config, trainer.validation_loss, validation):
        journal.event(state.step, line)
    return state


def run_to_its_end(trainer: Trainer, state: TrainState, ledger: RunLedger) -> TrainState:
    """Train, and let the ledger have the last word."""
    try:
        state = trainer.run(state)
    except Preempted:
        ledger.append(record(Kind.PREEMPTED, trainer.state))
        raise
    except TrainingDiverged as error:
        ledger.append(record(Kind.STOPPED, trainer.state, code=error.exit_code, reason=str(error)))
        raise
    ledger.append(record(Kind.DONE, state))
    return state


def identity_fields(config: RunConfig, layout: Plan) -> dict[str, Any]:
    """What a run starts with, for its ledger."""
    return {
        "config_digest": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        "layout": f"tensor {layout.tensor} x pipeline {layout.pipeline} x data {layout.data}",
        "versions": {name: version(name) for name in LIBRARIES},
        "host": socket.gethostname(),
    }


def report_record(journal: MetricsLogger, record: Record) -> None:
    """Records that people care about appear in the journal, but for those that it has in its own words."""
    if record.kind not in (Kind.RUN_START, Kind.RESUMED, Kind.DONE, Kind.PREEMPTED):
        for sentence in describe(record):
            journal.event(record.step, sentence)


def open_data(config: RunConfig, mesh: ParallelMesh, stack: ExitStack) -> tuple[BatchStream, ValidationSet]:
    """What this rank trains on and validates with; the tokenizer must be the one that the model is configured for."""
    rank, size = mesh.data.rank, mesh.data.size
    batches = BatchStream(config.data, seed=config.run.seed, data_rank=rank, data_size=size)
    stack.callback(batches.close)
    if batches.vocabulary_size != config.model.vocabulary_size:
        raise ConfigurationError(
            f"model.vocabulary_size = {config.model.vocabulary_size}: the tokenizer of the data has "
            f"{batches.vocabulary_size} pieces; set model.vocabulary_size = {batches.vocabulary_size}"
        )
    validation = ValidationSet(config.data, samples=config.evaluation.samples, data_rank=rank, data_size=size)
    stack.callback(validation.close)
    return batches, validation


def open_run_folder(config: RunConfig, mesh: ParallelMesh, stack: ExitStack) -> dict[str, str]:
    """On rank 0, lock the run folder; the settings that have changed since the last session."""
    if mesh.rank != 0:
        return {}
    config.run_folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(RunLock(config.run_folder))
    path = config.run_folder / CONFIG
    return changed_settings(path.read_text(encoding="utf-8"), dump_config(config)) if path.exists() else {}


def write_config(config: RunConfig, mesh: ParallelMesh) -> None:
    """On rank 0, once the run goes on with it and the ledger knows what is new: the resolved configuration."""
    if mesh.rank == 0:
        write_durably(config.run_folder / CONFIG, dump_config(config))


def open_journal(config: RunConfig, layout: Plan, mesh: ParallelMesh, state: TrainState) -> MetricsLogger:
    """Rank 0 writes; the others keep quiet."""
    if mesh.rank != 0:
        return SilentLogger()
    return FileLogger(
        config.run_folder,
        config.journal,
        total_steps=config.run.steps,
        first_step=state.step + 1,
        undone=state.attempt - state.step,
        lineage=state.lineage,
        flops_per_token=layout.flops_per_token,
        world_size=mesh.world_size,
        device_name=mesh.device_name,
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pretrain", description="Train one rank of a run.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--resume", metavar="TAG", help="go on from this checkpoint, in a new lineage")
    parser.add_argument("--force-condemned", action="store_true", help="even if it is condemned")
    parser.add_argument("--fault", metavar="PLAN", help="plant a fault, as `surefoot rehearse` does")
    # The deepspeed launcher appends it; the environment says the same.
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run this rank; returns the exit code."""
    options = parse(arguments)
    world = describe_world()
    try:
        with StopSignals() as signals, ExitStack() as stack:
            config = load_config(options.config, options.overrides)
            plan(config, int(world["WORLD_SIZE"]))  # what cannot work is named before the ranks meet
            request = Request(
                tag=options.resume,
                force_condemned=options.force_condemned,
                fault=FaultPlan.parse(options.fault, config.run.steps) if options.fault else None,
                port=int(world["MASTER_PORT"]),
            )
            train(config, ParallelMesh.create(config.parallel), signals, stack, request=request)
        return 0
    except (SurefootError, DataError) as error:
        code = DATA_EXIT_CODE if isinstance(error, DataError) else error.exit_code
        if world["RANK"] == "0":  # all ranks have the same error
            print(f"surefoot: {error}", file=sys.stderr, flush=True)
        return code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not is_peer_loss(error):
            traceback.print_exc()
            return 1
        print(f"surefoot: lost another rank: {error}", file=sys.stderr, flush=True)
        return PeerLost.exit_code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Communicators of a world that has lost a rank wait for it when they are torn down.
    os._exit(code)
