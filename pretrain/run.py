"""This is the composition root, the one place where a run is put together, on every rank alike."""

import hashlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from data_pipeline.files import replace_file
from data_pipeline.reading.batches import Batches
from data_pipeline.reading.mixture import has_validation
from data_pipeline.reading.stream import BatchStream, ValidationSet
from parallel.mesh import ParallelMesh
from pretrain.checkpoint.compatibility import Compatibility
from pretrain.checkpoint.folder import CheckpointFolder
from pretrain.checkpoint.loader import CheckpointLoader
from pretrain.checkpoint.manifest import LIBRARIES
from pretrain.checkpoint.random_state import seed_generators
from pretrain.checkpoint.restored import Restored
from pretrain.checkpoint.writer import CheckpointWriter
from pretrain.config.loader import dump_config
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.engine.engine import TrainEngine
from pretrain.errors import ConfigurationError, Preempted, TrainingDiverged
from pretrain.evaluation.examples import ExampleSet, open_examples
from pretrain.evaluation.validate import check_validation
from pretrain.fault_injection.fault import Fault
from pretrain.fault_injection.faults import make_fault
from pretrain.ledger.describe import describe
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, Record, record
from pretrain.metrics.logger import FileLogger, MetricsLogger, SilentLogger
from pretrain.metrics.profiler import Profiler
from pretrain.metrics.summary import closing_lines, start_lines
from pretrain.plan.plan import Plan, plan
from pretrain.recovery.candidates import CheckpointManager
from pretrain.recovery.changes import changes_of
from pretrain.recovery.findings import FindingsLog
from pretrain.recovery.resume import PLAIN, Request, in_words, restore, resume, resumed
from pretrain.recovery.rollback import RollbackExecutor
from pretrain.run_folder import CHECKPOINTS, CONFIG
from pretrain.runtime.agreement import agreed, check_alike
from pretrain.runtime.heartbeat import Heartbeat
from pretrain.runtime.kernels import detect_kernels
from pretrain.runtime.run_folder_guard import check_run_folder, folder_problem, remove_leftovers
from pretrain.runtime.run_lock import RunLock
from pretrain.runtime.shared_folder import check_shared
from pretrain.runtime.signals import StopSignals
from pretrain.runtime.stacks import stacks_on_request
from pretrain.step import TrainState
from pretrain.tasks.registry import TASKS
from pretrain.trainer import Collaborators, RunJudge, Trainer
from pretrain.watchdog.policy import judge_finite
from pretrain.watchdog.watchdog import Watchdog


@dataclass(frozen=True)
class Parts:
    """These are the parts that a run is made of before it is known where it starts."""

    layout: Plan
    mesh: ParallelMesh
    batches: Batches
    validation: ValidationSet | None
    """None: there is no validation data."""
    examples: ExampleSet | None
    fault: Fault
    changes: dict[str, str]
    """Settings that the run has not had before."""
    heartbeat: Heartbeat
    ledger: RunLedger
    engine: TrainEngine
    writer: CheckpointWriter
    loader: CheckpointLoader
    watchdog: Watchdog
    notes: list[str]
    """What is reported as soon as the logger is open."""


def train(
    config: RunConfig,
    mesh: ParallelMesh,
    signals: StopSignals,
    stack: ExitStack,
    judge: RunJudge | None = None,
    request: Request = PLAIN,
) -> TrainState:
    """Put a run together and train it to its end; `stack` closes what was opened.

    `judge` takes the place of the watchdog's.
    """
    parts = open_parts(config, mesh, stack, request)
    restored = restore(parts.loader, parts.engine, parts.ledger, request)
    state = starting_state(config, parts, restored, request)
    parts.writer.folder.run_id = parts.ledger.run_id()
    agreed(mesh, lambda: write_config(config, mesh))
    metrics = stack.enter_context(open_metrics(config, parts, state, request))
    for note in parts.notes:
        metrics.event(state.step, note)
    parts.ledger.report = lambda record: report_record(metrics, record)
    profiler = Profiler(request.profile, config.run_folder, parts.layout, mesh, metrics)
    trainer = make_trainer(config, parts, metrics, profiler, signals, judge)
    state = trainer.resume(state)
    if restored:
        restored.restore_random_state()
    with end_recorded(trainer, parts.ledger):
        state = trainer.run(state)
    loss, unit = trainer.validation_loss, config.model.loss_unit
    for line in closing_lines(config, state, loss, parts.validation, unit):
        metrics.event(state.step, line)
    return state


def open_parts(config: RunConfig, mesh: ParallelMesh, stack: ExitStack, request: Request) -> Parts:
    """Open and build everything that does not depend on where the run starts."""
    layout = plan(config, mesh.world_size)
    seed_generators(config.run.seed, mesh.rank)
    # Data first: a run whose data is missing leaves no folder.
    stream, validation = agreed(mesh, lambda: open_data(config, mesh, stack))
    check_validation(mesh.gather(validation is not None), config.probes)
    held_out = validation.fingerprint if validation else "none"
    check_alike(mesh, {"data.sources": stream.fingerprint, "data.validation": held_out})
    fault = make_fault(request.fault, config, mesh)
    batches = fault.wrap_batches(stream)
    lock, own_changes = agreed(mesh, lambda: open_run_folder(config, mesh, stack, request.tag))
    check_shared(config.run_folder, mesh)
    changes, change_note = mesh.gather(own_changes)[0]
    notes = [change_note] if change_note else []
    stack.enter_context(stacks_on_request(config.run_folder, mesh.rank))
    heartbeat = stack.enter_context(Heartbeat(config.run_folder, mesh.rank, request.port))
    ledger = RunLedger.open(config.run_folder, mesh, stack, lambda record: notes.extend(describe(record)))
    kernels = detect_kernels()
    companions = agreed(mesh, lambda: {CONFIG: dump_config(config).encode(), **stream.companions})
    engine = assemble_engine(config, layout, mesh, kernels, companions, notes.append)
    notes += [*start_lines(config, layout, mesh, kernels), *layout.warnings]
    if validation is None:
        notes.append(
            "no validation split beside the training data and no data.validation: no validation loss"
        )
    folder = CheckpointFolder(
        config.run_folder / CHECKPOINTS,
        mesh,
        watched=config.watchdog.enabled,
        report=notes.append,
        problem=lambda: problem_of_folder(config, lock),
    )
    compatibility = Compatibility.of(config, mesh, batches.fingerprint, in_words(changes))
    examples = open_examples(config, mesh, companions, stack, notes.append) if validation else None
    if why := ledger.history.stopped:
        notes.append(f"the last session had given up: {why}")
    return Parts(
        layout=layout,
        mesh=mesh,
        batches=batches,
        validation=validation,
        examples=examples,
        fault=fault,
        changes=changes,
        heartbeat=heartbeat,
        ledger=ledger,
        engine=engine,
        writer=CheckpointWriter(folder, config.checkpoint, compatibility, companions),
        loader=CheckpointLoader(folder, compatibility),
        watchdog=Watchdog(config),
        notes=notes,
    )


def starting_state(
    config: RunConfig, parts: Parts, restored: Restored | None, request: Request
) -> TrainState:
    """It returns where the run starts, at a checkpoint or at the beginning, and records that in the ledger."""
    ledger = parts.ledger
    if restored:
        return resume(restored, request, parts.changes, parts.batches, parts.watchdog, ledger)
    state = resumed(TrainState(), ledger)
    facts = {**identity_fields(config, parts.layout), "run_id": ledger.run_id()}
    ledger.append(record(Kind.RUN_START, state, **facts))
    return state


def make_trainer(
    config: RunConfig,
    parts: Parts,
    metrics: MetricsLogger,
    profiler: Profiler,
    signals: StopSignals,
    judge: RunJudge | None,
) -> Trainer:
    """Build the trainer and give each of its collaborators what it works with."""
    mesh, watchdog, ledger = parts.mesh, parts.watchdog, parts.ledger
    checkpoints = CheckpointManager(
        config,
        engine=parts.engine,
        batches=parts.batches,
        writer=parts.writer,
        loader=parts.loader,
        watchdog=watchdog,
        ledger=ledger,
        heartbeat=parts.heartbeat,
        metrics=metrics,
    )
    findings = FindingsLog(watchdog, ledger, parts.batches, hosts=mesh.gather(socket.gethostname()))
    rollback = RollbackExecutor(
        return_updates=config.watchdog.learning_rate_return,
        batches=parts.batches,
        checkpoints=checkpoints,
        watchdog=watchdog,
        ledger=ledger,
        findings=findings,
        heartbeat=parts.heartbeat,
        metrics=metrics,
    )
    collaborators = Collaborators(
        mesh=mesh,
        engine=parts.engine,
        batches=parts.batches,
        validation=parts.validation,
        examples=parts.examples,
        checkpoints=checkpoints,
        rollback=rollback,
        watchdog=watchdog,
        findings=findings,
        ledger=ledger,
        metrics=metrics,
        profiler=profiler,
        signals=signals,
        heartbeat=parts.heartbeat,
        fault=parts.fault,
        judge=judge if judge or config.watchdog.enabled else judge_finite,
    )
    return Trainer(config, collaborators)


@contextmanager
def end_recorded(trainer: Trainer, ledger: RunLedger) -> Iterator[None]:
    """Record in the ledger how the run inside of it ended: it was done, asked to stop, or given up."""
    try:
        yield
    except Preempted:
        ledger.append(record(Kind.PREEMPTED, trainer.state))
        raise
    except TrainingDiverged as error:
        ledger.append(record(Kind.STOPPED, trainer.state, code=error.exit_code, reason=str(error)))
        raise
    ledger.append(record(Kind.DONE, trainer.state))


def identity_fields(config: RunConfig, layout: Plan) -> dict[str, Any]:
    """It returns what a run starts with, for its ledger."""
    return {
        "config_digest": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        "layout": f"tensor {layout.tensor} x pipeline {layout.pipeline} x data {layout.data}",
        "versions": {name: version(name) for name in LIBRARIES},
        "host": socket.gethostname(),
    }


def report_record(metrics: MetricsLogger, record: Record) -> None:
    """It reports a record as events, except the kinds that the logger reports in its own words."""
    if record.kind not in (Kind.RUN_START, Kind.RESUMED, Kind.DONE, Kind.PREEMPTED):
        for sentence in describe(record):
            metrics.event(record.step, sentence)


def open_data(
    config: RunConfig, mesh: ParallelMesh, stack: ExitStack
) -> tuple[BatchStream[Any, Any], ValidationSet | None]:
    """Open what this rank trains on and validates with, if anything, of the kind that the task reads."""
    task, rank, size = TASKS[config.model.kind], mesh.data.rank, mesh.data.size
    batches = BatchStream(task.source, config.data, seed=config.run.seed, data_rank=rank, data_size=size)
    stack.callback(batches.close)
    if problems := list(config.model.data_problems(config.data, batches.manifest.model_dump(mode="json"))):
        raise ConfigurationError("the data does not fit this configuration", problems)
    if not has_validation(config.data):
        return batches, None
    validation = ValidationSet(
        task.source, config.data, samples=config.evaluation.samples, data_rank=rank, data_size=size
    )
    stack.callback(validation.close)
    return batches, validation


def open_run_folder(
    config: RunConfig, mesh: ParallelMesh, stack: ExitStack, tag: str | None
) -> tuple[RunLock | None, tuple[dict[str, str], str]]:
    """Lock the run folder on rank 0, and return the settings that the run has not had before, with a line on them."""
    if mesh.rank != 0:
        return None, ({}, "")
    folder = config.run_folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"run.folder: {folder} cannot be made: {error.strerror}") from error
    check_run_folder(folder)
    lock = stack.enter_context(RunLock(folder))
    if (folder / CHECKPOINTS).is_symlink():  # another run may have a link to the same folder
        stack.enter_context(RunLock(folder / CHECKPOINTS))
    remove_leftovers(folder)
    return lock, changes_of(config, tag)


def problem_of_folder(config: RunConfig, lock: RunLock | None) -> str:
    """It says, on rank 0, what speaks against writing more checkpoints into the folder of the run; empty if nothing."""
    return (lock.problem() or folder_problem(config.run_folder / CHECKPOINTS)) if lock else ""


def write_config(config: RunConfig, mesh: ParallelMesh) -> None:
    """Write the resolved configuration, on rank 0, once the run goes on with it and the ledger knows what is new."""
    if mesh.rank == 0:
        replace_file(config.run_folder / CONFIG, dump_config(config))


def open_metrics(config: RunConfig, parts: Parts, state: TrainState, request: Request) -> MetricsLogger:
    """Open the logger: rank 0 writes, the others write nothing."""
    mesh = parts.mesh
    if mesh.rank != 0:
        return SilentLogger()
    return FileLogger(
        config.run_folder,
        config.journal,
        total_steps=config.run.steps,
        first_step=state.step + 1,
        undone=state.attempt - state.step,
        lineage=state.lineage,
        flops_per_token=parts.layout.flops_per_token,
        world_size=mesh.world_size,
        device_name=mesh.device_name,
        metrics=parts.engine.evaluator.metrics,
        targets=config.model.targets,
        attended=request.attended,
    )
