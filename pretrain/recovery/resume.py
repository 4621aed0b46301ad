"""A process resumes a run here: it decides from which checkpoint, and tells what has changed since."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from data_pipeline.reading.batches import Batches
from pretrain.checkpoint.loader import CheckpointLoader
from pretrain.checkpoint.restored import Restored
from pretrain.engine.engine import TrainEngine
from pretrain.fault_injection.plan import FaultPlan
from pretrain.ledger.ledger import RunLedger
from pretrain.ledger.record import Kind, record
from pretrain.plan.profiled_steps import ProfiledSteps
from pretrain.step import TrainState
from pretrain.watchdog.watchdog import Watchdog

FELT = ("run.steps", "model.", "data.", "optimizer.", "schedule.", "precision.", "probes.")
"""Settings that signals of the watchdog depend on; a schedule depends on `run.steps`."""
UNFELT = (
    "data.sources",
    "data.validation",
    "data.cache",
    "data.prefetch_steps",
    "data.damaged_sample_budget",
    "model.activation_checkpointing",
    "probes.histogram_every_steps",
)
"""Those among them that change nothing a signal sees. Of data the fingerprint counts, and a position in data with
another one is refused: what has another path has only moved."""


@dataclass(frozen=True)
class Request:
    """It holds what the command line asks for, beside the configuration."""

    tag: str | None = None
    """Checkpoint to go on from; none: the newest."""
    force_condemned: bool = False
    fault: FaultPlan | None = None
    """To be planted."""
    profile: ProfiledSteps | None = None
    """Steps to be profiled."""
    port: int = 0
    """MASTER_PORT, which tells launches apart."""
    attended: bool = True
    """A terminal at standard output is one that people look at."""


PLAIN = Request()
"""What a command line without options asks for."""


def restore(
    loader: CheckpointLoader, engine: TrainEngine, ledger: RunLedger, request: Request
) -> Restored | None:
    """It loads the checkpoint that was asked for; else the newest one, of those from before a rollback that was cut
    short.

    It returns None where there is nothing to resume: the run begins.
    """
    loader.folder.set_foreign_aside(ledger.history.run_ids, request.tag)
    loader.folder.set_unsealed_aside(ledger.history.sealed)
    if request.tag:
        return loader.load_tag(engine, request.tag, allow_condemned=request.force_condemned)
    pending = ledger.history.pending
    if pending is None:
        rollbacks = ledger.history.rollbacks
        afresh = bool(rollbacks) and rollbacks[-1].target_tag is None  # to host memory, or to the beginning
        return loader.load_newest(engine, sealed=bool(ledger.history.sealed), afresh=afresh)
    loader.folder.condemn(pending.target_step, pending.reason)
    if not loader.folder.candidates().preferred(pending.target_step):
        return None  # host memory is gone, and nothing older is on disk: the initial weights are
    restored = loader.load_preferred(engine, pending.target_step)
    loader.folder.condemn(restored.state.step, pending.reason)
    return restored


def resume(
    restored: Restored,
    request: Request,
    changes: Mapping[str, str],
    batches: Batches,
    watchdog: Watchdog,
    ledger: RunLedger,
) -> TrainState:
    """It has everybody go on from a checkpoint that the engine has loaded, and returns where the counters stand."""
    state, history = resumed(restored.state, ledger), ledger.history
    if request.tag:
        state = replace(state, attempt=history.attempt, lineage=history.lineage + 1)
    batches.seek(restored.data)
    watchdog.load_state(restored.watchdog, restored.state.attempt, ledger.history)
    run_id = restored.run_id or ledger.run_id()
    converted = {"converted": restored.converted} if restored.converted else {}
    ledger.append(record(Kind.RESUMED, state, tag=str(restored.tag), run_id=run_id, **converted))
    if on_purpose := {key: change for key, change in changes.items() if is_felt(key)}:
        watchdog.rebaseline()
        ledger.append(record(Kind.REBASELINE, state, reason=in_words(on_purpose), declared=True))
    return state


def resumed(saved: TrainState, ledger: RunLedger) -> TrainState:
    """It returns the counters of a run that a process resumes: attempts and lineages go on where the ledger has them.

    What a session did that has given up stays in the curves: what comes now is another lineage.
    """
    history = ledger.history
    if history.stopped:
        return replace(saved, lineage=history.lineage + 1, attempt=history.attempt)
    if saved.lineage >= history.lineage:
        return saved
    return replace(saved, lineage=history.lineage, attempt=max(saved.attempt, history.attempt))


def is_felt(key: str) -> bool:
    """It says whether a setting that has changed makes the past no measure for what comes."""
    return key.startswith(FELT) and key not in UNFELT


def in_words(changes: Mapping[str, str]) -> str:
    """It names the settings that have changed, in one line."""
    return ", ".join(f"{key} {change}" for key, change in changes.items())
