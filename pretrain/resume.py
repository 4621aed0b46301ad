"""How a process takes up a run: from which checkpoint, and with what has changed since."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from data_pipeline.stream import BatchStream
from pretrain.checkpoint import Checkpointer
from pretrain.engine import TrainEngine
from pretrain.records import TrainState
from pretrain.restored import Restored
from pretrain.safekeeping import record
from pretrain.watchdog.chronicle import Chronicle
from pretrain.watchdog.fault_plan import FaultPlan
from pretrain.watchdog.record import Kind
from pretrain.watchdog.watchdog import Watchdog

FELT = ("run.steps", "model.", "data.", "optimizer.", "schedule.", "precision.", "probes.")
"""Settings that signals of the watchdog depend on; a schedule depends on `run.steps`."""


@dataclass(frozen=True)
class Request:
    """What the command line asks for, beside the configuration."""

    tag: str | None = None
    """Checkpoint to go on from; none: the newest."""
    force_condemned: bool = False
    fault: FaultPlan | None = None
    """To be planted."""
    port: int = 0
    """MASTER_PORT, which tells launches apart."""


PLAIN = Request()
"""What a command line without options asks for."""


def restore(
    checkpointer: Checkpointer, engine: TrainEngine, chronicle: Chronicle, request: Request
) -> Restored | None:
    """The checkpoint that was asked for; else the newest one, of those from before a rollback that was cut short."""
    if request.tag:
        return checkpointer.load_tag(engine, request.tag, allow_condemned=request.force_condemned)
    pending = chronicle.recovery.pending
    if pending is None:
        rollbacks = chronicle.recovery.rollbacks
        afresh = bool(rollbacks) and rollbacks[-1].target_tag is None  # to host memory, or to the beginning
        return checkpointer.load_newest(engine, sealed=chronicle.recovery.sealed, afresh=afresh)
    checkpointer.condemn(pending.target_step, pending.reason)
    if checkpointer.choose(pending.target_step) is None:
        return None  # host memory is gone, and nothing older is on disk: the initial weights are
    restored = checkpointer.load_preferred(engine, pending.target_step)
    checkpointer.condemn(restored.state.step, pending.reason)
    return restored


def take_up(
    restored: Restored,
    request: Request,
    changes: Mapping[str, str],
    batches: BatchStream,
    watchdog: Watchdog,
    chronicle: Chronicle,
) -> TrainState:
    """Have everybody go on from a checkpoint that the engine has loaded; where the counters stand."""
    state, recovery = resumed(restored.state, chronicle), chronicle.recovery
    if request.tag:
        state = replace(state, attempt=recovery.attempt, lineage=recovery.lineage + 1)
    batches.seek(restored.data)
    watchdog.take_up(restored.watchdog, restored.state.attempt, chronicle.recovery)
    chronicle.tell(record(Kind.RESUMED, state, tag=str(restored.tag)))
    if on_purpose := {key: change for key, change in changes.items() if key.startswith(FELT)}:
        watchdog.rebaseline()
        chronicle.tell(record(Kind.REBASELINE, state, reason=in_words(on_purpose), declared=True))
    return state


def resumed(saved: TrainState, chronicle: Chronicle) -> TrainState:
    """The counters of a run that a process takes up: attempts and lineages go on where the ledger has them. What a
    session did that has given up stays in the curves: what comes now is another lineage."""
    recovery = chronicle.recovery
    if recovery.stopped:
        return replace(saved, lineage=recovery.lineage + 1, attempt=recovery.attempt)
    if saved.lineage >= recovery.lineage:
        return saved
    return replace(saved, lineage=recovery.lineage, attempt=max(saved.attempt, recovery.attempt))


def in_words(changes: Mapping[str, str]) -> str:
    """Settings that have changed, in one line."""
    return ", ".join(f"{key} {change}" for key, change in changes.items())
