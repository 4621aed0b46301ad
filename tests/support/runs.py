"""Whole runs go through the composition root in the rig, with faults planted through the judge and the file system.

What a run has done is read from its folder, as a user would.
"""

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from support.training import Layout, make_config, make_mesh

from pretrain.checkpoint.lifecycle import candidates
from pretrain.config.loader import dump_config
from pretrain.config.run import RunConfig
from pretrain.errors import Preempted
from pretrain.run import train
from pretrain.runtime.signals import StopSignals
from pretrain.step import StepReport, TrainState, Verdict
from pretrain.watchdog.policy import judge_finite

Judge = Callable[[StepReport, TrainState], Verdict]


def run_config(layout: Layout, folder: Path, corpus: Path, **sections: dict[str, Any]) -> RunConfig:
    """It configures a run of 8 steps over several epochs of the corpus, in `folder/test`."""
    base = make_config(layout).model_dump(mode="json")
    changes: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": 8},
        "model": {"num_layers": 2, "hidden_size": 16, "dropout": 0.1},
        "data": {"sources": [{"path": str(corpus)}]},
        "checkpoint": {"every_steps": 100, "keep_last": 10},
        "evaluation": {"every_steps": 4, "samples": 12},
        "journal": {"console": "none", "tensorboard": False},
    }
    for name in {**changes, **sections}:
        base[name] = {**base[name], **changes.get(name, {}), **sections.get(name, {})}
    return RunConfig.model_validate(base)


def run_to_end(config: RunConfig, judge: Judge = judge_finite) -> str:
    """It trains as `python -m pretrain` would on this rank; returns `finished` or `preempted`."""
    try:
        with StopSignals() as signals, ExitStack() as stack:
            train(config, make_mesh(config.parallel), signals, stack, judge)
        return "finished"
    except Preempted:
        return "preempted"


def run_and_stop(config: RunConfig, step: int, rank: int = 0) -> str:
    """It trains, with a SIGTERM for one rank in the middle of `step`: that is noticed in the next one, which is the
    last."""

    def judge(report: StepReport, state: TrainState) -> Verdict:
        if report.step == step and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return judge_finite(report, state)

    return run_to_end(config, judge)


def metrics(folder: Path, key: str = "loss") -> dict[int, float]:
    """It returns step -> value, from metrics.jsonl; the last row of a step counts."""
    rows = [json.loads(line) for line in (folder / "test/metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


def newest_checkpoint(folder: Path, run: str = "test") -> Path:
    checkpoints = folder / run / "checkpoints"
    return checkpoints / str(candidates(checkpoints).sealed[0])


def contents(checkpoint: Path) -> dict[str, Any]:
    """It returns everything in the files of a checkpoint's ranks, by file."""
    states = {path.name: torch.load(path, weights_only=False) for path in sorted(checkpoint.glob("*.pt"))}
    tensors = {path.name: load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}
    assert len(states) == len(tensors) > 0, "each rank has a file of each kind"
    return {**states, **tensors}


def differences(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """It returns the places where two nested structures of tensors and plain values differ by a bit."""
    if isinstance(ours, torch.Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
        return [] if same else [where]
    if isinstance(ours, dict):
        if list(ours) != list(theirs):
            return [f"{where}: keys {list(ours)} and {list(theirs)}"]
        return [d for key in ours for d in differences(ours[key], theirs[key], f"{where}/{key}")]
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return [f"{where}: length"]
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    plain = (str, int, float, bool, type(None))
    same = ours == theirs if isinstance(ours, plain) else vars(ours) == vars(theirs)
    return [] if same else [f"{where}: {ours} and {theirs}"]


def dumped(config: RunConfig, path: Path) -> Path:
    path.write_text(dump_config(config))
    return path
