"""Two faults at once: in each other's steps, in a recovery, and in what a recovery goes back to."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.runs import metrics
from support.training import Layout
from support.watched import kinds, one, run, story, watched

from pretrain.checkpoint.folder import CheckpointFolder
from pretrain.checkpoint.snapshots import SnapshotStore
from pretrain.checkpoint.writer import CheckpointWriter
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.fault_injection.fault import Fault
from pretrain.ledger.history import fold
from pretrain.ledger.record import Kind

Strike = Callable[[TrainEngine, int], None]


def nan_gradients(attempts: range) -> Callable[[Fault, TrainEngine, int], None]:
    """The first gradient of these attempts is NaN."""

    def before_step(fault: Fault, engine: TrainEngine, attempt: int) -> None:
        parameter = next(engine.module.parameters())
        if attempt in attempts:
            handle = parameter.register_hook(lambda gradient: spoilt(gradient, handle))

    def spoilt(gradient: Any, handle: Any) -> Any:
        handle.remove()
        return gradient * float("nan")

    return before_step


def run_with(config: RunConfig, *faults: range) -> str:
    def before_step(fault: Fault, engine: TrainEngine, attempt: int) -> None:
        for attempts in faults:
            nan_gradients(attempts)(fault, engine, attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fault, "before_step", before_step)
        return run(config)


def test_a_second_fault_in_the_steps_of_a_recovery_climbs_the_ladder(corpus: Path, tmp_path: Path) -> None:
    """Attempts 20 to 23 slip back to step 12; 26 to 29 slip again, before that ground is won back."""
    config = watched(Layout(data=2, zero=1), tmp_path, corpus)
    assert run_distributed(run_with, 2, config, range(20, 24), range(26, 30)) == ["finished"] * 2
    rollbacks = fold(story(tmp_path)).rollbacks
    assert [str(rollback.remedy) for rollback in rollbacks] == ["skip", "deeper"]
    first, second = rollbacks
    assert second.target_step < first.target_step
    assert kinds(tmp_path)[-1] == "done"


def test_a_fault_of_memory_within_the_patience_of_another_fault_is_undone_first(
    corpus: Path, tmp_path: Path
) -> None:
    """Two updates are withheld for what is not finite when the copies of the table are found to differ."""
    config = watched(Layout(data=2, zero=1), tmp_path, corpus)
    assert run_distributed(run_with_a_flip, 2, config) == ["finished"] * 2
    (rollback,) = fold(story(tmp_path)).rollbacks
    assert str(rollback.remedy) == "replay"
    assert kinds(tmp_path).count("veto") == 2
    assert len(metrics(tmp_path)) == 30


def run_with_a_flip(config: RunConfig) -> str:
    def before_step(fault: Fault, engine: TrainEngine, attempt: int) -> None:
        nan_gradients(range(20, 22))(fault, engine, attempt)
        if attempt == 22 and engine.mesh.data.last:
            next(engine.module.parameters()).data.view(-1)[3] += 1e4

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fault, "before_step", before_step)
        return run(config)
