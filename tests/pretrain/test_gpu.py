"""On a GPU: the run that the CPU computes, bf16 over NCCL, and exact resumption."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.runs import contents, differences, dumped, newest_checkpoint, run_config
from support.training import Layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]


def train(config: Path, ranks: int = 1, *, gpu: bool = True, overrides: tuple[str, ...] = ()) -> int:
    """`python -m pretrain` under torchrun; returns the exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    if not gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    changes = [part for text in overrides for part in ("--set", text)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, "-m", "pretrain", str(config), *changes]
    return subprocess.run(command, env=environment, timeout=300).returncode


def losses(folder: Path) -> list[float]:
    rows = (json.loads(line) for line in (folder / "test/metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_one_gpu_computes_what_the_cpu_computes(corpus: Path, tmp_path: Path) -> None:
    for name in ("gpu", "cpu"):
        # Dropout draws other masks on another kind of device.
        config = run_config(Layout(zero=1), tmp_path / name, corpus, model={"dropout": 0.0})
        assert train(dumped(config, tmp_path / f"{name}.toml"), gpu=name == "gpu") == 0
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)


@pytest.mark.parametrize("layout", [Layout(zero=1, dtype="bf16"), Layout(zero=3, dtype="bf16")], ids=str)
def test_resumed_equals_uninterrupted(layout: Layout, corpus: Path, tmp_path: Path) -> None:
    for name in ("twin", "run"):
        config = run_config(layout, tmp_path / name, corpus, checkpoint={"every_steps": 4})
        assert train(dumped(config, tmp_path / f"{name}.toml")) == 0
    shutil.rmtree(newest_checkpoint(tmp_path / "run"))
    assert train(tmp_path / "run.toml") == 0
    ours, theirs = (contents(newest_checkpoint(tmp_path / name)) for name in ("run", "twin"))
    assert differences(ours, theirs) == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize(
    "layout",
    [
        Layout(tensor=2, zero=1),
        Layout(pipeline=2, zero=1, accumulation=3),
        Layout(data=2, zero=2),
        Layout(data=2, zero=3),
    ],
    ids=str,
)
def test_layouts_agree_over_nccl(layout: Layout, corpus: Path, tmp_path: Path) -> None:
    for name, chosen in (("alone", Layout(zero=1)), ("layout", layout)):
        config = run_config(chosen, tmp_path / name, corpus, model={"dropout": 0.0})
        assert train(dumped(config, tmp_path / f"{name}.toml"), chosen.world_size) == 0
    assert losses(tmp_path / "layout") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)
