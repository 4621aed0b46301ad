"""One mishap after the other in one run: nothing is lost, nothing is left behind, and the end is the twin's."""

import errno
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.distributed import RankFailed, run_distributed
from support.runs import contents, differences, metrics, newest_checkpoint, run_config
from support.training import Layout, make_mesh

from pretrain.backend.state_file import PieceWriter
from pretrain.checkpoint import manifest, rank_files
from pretrain.checkpoint.lifecycle import CONDEMNED, LATEST, candidates
from pretrain.config.run import RunConfig
from pretrain.errors import Preempted
from pretrain.fault_injection.faults import make_fault
from pretrain.fault_injection.plan import FaultPlan
from pretrain.ledger.file import LedgerFile, read_ledger
from pretrain.ledger.history import RunHistory, fold
from pretrain.ledger.record import Kind, Record
from pretrain.recovery.candidates import CheckpointManager
from pretrain.recovery.rollback import RollbackExecutor
from pretrain.run import train
from pretrain.run_folder import LEDGER
from pretrain.runtime.signals import StopSignals
from pretrain.step import TrainState
from pretrain.trainer import Trainer

pytestmark = pytest.mark.slow

CYCLES = 27
STEPS = 400
LAYOUTS = {1: Layout(data=2, zero=1), 2: Layout(tensor=2, zero=1), 3: Layout(pipeline=2, zero=0)}
"""By seed of the mishaps."""
MISHAPS = (
    "killed in a step",
    "killed between intent and deed",
    "preempted",
    "killed in a save",
    "trouble",
    "full disk",
    "killed before the deed is told",
    "preempted",
    "killed while sealing",
)


def watched(layout: Layout, folder: Path, corpus: Path) -> RunConfig:
    return run_config(
        layout,
        folder,
        corpus,
        run={"folder": str(folder), "steps": STEPS},
        checkpoint={"every_steps": 5, "keep_last": 4},
        evaluation={"every_steps": 40, "samples": 12},
        # Verdicts come from what is planted alone: no drift is ever enough.
        watchdog={
            "threshold": 1e9,
            "horizon": 2,
            "margin": 0,
            "skip_after": 1,
            "memory_every_steps": 4,
            "skipped_fraction": 0.9,
            "rollbacks": 100,
            "deeper": 100,
            "deepest": 100,
            "learning_rate_return": 20,
        },
    )


def session(config: RunConfig, mishap: str, steps: int, rank: int) -> str:
    """Train until the mishap, which comes on `rank` after so many steps of this session."""
    with struck(mishap, steps, int(os.environ["RANK"]) == rank):
        try:
            with StopSignals() as signals, ExitStack() as stack:
                train(config, make_mesh(config.parallel), signals, stack)
            return "finished"
        except Preempted:
            return "preempted"


@contextmanager
def struck(mishap: str, steps: int, here: bool) -> Iterator[None]:
    """Within, the mishap is due; those that a process survives are followed by a SIGTERM some steps later."""
    judged = 0

    def die(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def due(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: die() if judged >= steps else original(*arguments)

    def judge(trainer: Trainer, *arguments: Any) -> Any:
        nonlocal judged
        judged += 1
        if here and mishap == "killed in a step" and judged == steps:
            die()
        if here and judged == steps + (0 if mishap == "preempted" else 9):
            os.kill(os.getpid(), signal.SIGTERM)
        return judge_step(trainer, *arguments)

    def resume(trainer: Trainer, state: TrainState) -> TrainState:
        state = resume_run(trainer, state)
        plan = FaultPlan("nan_gradient", state.attempt + steps, 4)
        trainer.fault = make_fault(plan, trainer.config, trainer.mesh)
        return state

    def refuse(file: PieceWriter, piece: memoryview) -> None:
        if judged in range(steps, steps + 5):
            file._failure = OSError(errno.ENOSPC, "No space left on device")
        else:
            write(file, piece)

    judge_step, resume_run, write = Trainer._judge, Trainer.resume, PieceWriter._write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_judge", judge)
        if mishap in ("trouble", "killed between intent and deed", "killed before the deed is told"):
            patch.setattr(Trainer, "resume", resume)
        if here and mishap == "killed in a save":
            patch.setattr(rank_files, "fsync_and_hash", due(rank_files.fsync_and_hash))
        if here and mishap == "killed while sealing":
            patch.setattr(manifest, "replace_file", due(manifest.replace_file))
        if here and mishap == "killed between intent and deed":
            patch.setattr(CheckpointManager, "condemn", die)
        if here and mishap == "killed before the deed is told":
            patch.setattr(RollbackExecutor, "_conclude", die)
        if here and mishap == "full disk":
            patch.setattr(PieceWriter, "_write", refuse)
        yield


def damage(checkpoints: Path, draw: random.Random) -> None:
    """Between two sessions something happens to the newest checkpoint, or to `latest`."""
    found = candidates(checkpoints).sealed
    what = draw.choice(["nothing", "latest", "bytes", "bytes"])
    if what == "latest":
        (checkpoints / LATEST).write_text(draw.choice(["", "../../elsewhere", "step00000001-a1", "\0"]))
    if what != "bytes" or len(found) < 3:
        return
    path = draw.choice(sorted((checkpoints / str(found[0])).glob("*.pt")))
    data = bytearray(path.read_bytes())
    match draw.choice(["flip", "cut", "empty", "gone"]):
        case "flip":
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            path.write_bytes(data)
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "gone":
            path.unlink()


def belongings() -> set[Path]:
    """What processes may leave on a machine; the rig's own are not meant."""
    found = {*Path("/dev/shm").iterdir(), *Path(tempfile.gettempdir()).iterdir()}
    return {path for path in found if not path.name.startswith(("ranks-", "pymp-"))}


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("seed", "layout"), LAYOUTS.items(), ids=str)
def test_a_run_survives_one_mishap_after_the_other(
    seed: int, layout: Layout, corpus: Path, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    config = watched(layout, tmp_path / "run", corpus)
    before = belongings()
    met: list[str] = []
    while len(met) < CYCLES:
        mishap = MISHAPS[len(met) % len(MISHAPS)]
        rank = 0 if mishap == "killed while sealing" else draw.randrange(2)
        steps = draw.randint(4, 10) + (15 if mishap == "preempted" else 0)
        try:
            (end, _) = run_distributed(session, 2, config, mishap, steps, rank)
        except RankFailed as error:
            end = "killed" if "exit code -9" in str(error) else str(error)
        assert end == ("killed" if mishap.startswith("killed") else "preempted"), (met, mishap)
        met.append(mishap)
        damage(config.run_folder / "checkpoints", draw)
    assert run_distributed(session, 2, config, "none", STEPS, 0) == ["finished"] * 2

    records = list(read_ledger(config.run_folder / LEDGER))
    course = fold(records)
    assert len(course.rollbacks) >= CYCLES * 3 // len(MISHAPS)
    twin = watched(layout, tmp_path / "twin", corpus)
    told(twin, course)
    assert run_distributed(session, 2, twin, "none", STEPS, 0) == ["finished"] * 2
    assert_same_end(config, twin)
    assert belongings() <= before | {tmp_path}
    assert not [path for path in config.run_folder.rglob("*") if path.name.endswith(".tmp")]


def told(config: RunConfig, course: RunHistory) -> None:
    """A ledger that asks for what a run has learned, before its first step."""
    config.run_folder.mkdir(parents=True)
    ledger = LedgerFile(config.run_folder / LEDGER)
    intent = replace(
        course.rollbacks[0], step=0, attempt=0, target_step=0, target_tag=None, skip=course.skips
    )
    ledger.append(intent.intent(1))
    for edit in course.learning_rate_edits:
        ledger.append(Record(Kind.LEARNING_RATE_EDIT, 0, 0, 1, vars(edit)))
    ledger.append(Record(Kind.ROLLBACK_DONE, 0, 0, 1, {"seconds": 0.0, "tier": "disk", "proof": ""}))
    ledger.close()


def assert_same_end(config: RunConfig, twin: RunConfig) -> None:
    folder, other = config.run_folder.parent, twin.run_folder.parent
    for key in ("loss", "gradient_norm", "learning_rate", "validation_loss"):
        assert metrics(folder, key) == metrics(other, key)
    assert sorted(metrics(folder)) == list(range(1, STEPS + 1))
    ours, theirs = contents(newest_checkpoint(folder)), contents(newest_checkpoint(other))
    shared = [name for name in ours if not name.startswith("rank_")]
    assert shared
    assert [d for name in shared for d in differences(ours[name], theirs[name], name)] == []
    assert not (newest_checkpoint(folder) / CONDEMNED).exists()
