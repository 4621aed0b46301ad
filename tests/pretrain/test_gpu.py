"""On a GPU: the run that the CPU computes, bf16 over NCCL, exact resumption, and a rollback.

With `SUREFOOT_TEST_DEVICE=cuda` the rig runs the tests of parallel/ and pretrain/ on GPUs as well.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import golden
from support.runs import contents, differences, dumped, newest_checkpoint, run_config
from support.training import Layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device"),
]

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": golden.MODELS["gpt2"],
    "llama": golden.MODELS["llama"],
    "methods": {"reparametrization": "sigma", "attention": {"num_heads": 4, "kind": "mlra"}},
}
RESUMED = [
    ("methods", Layout(dtype="bf16")),
    ("gpt2", Layout(zero=1, dtype="bf16", checkpointing=True)),
    ("methods", Layout(zero=2, dtype="bf16", checkpointing=True)),
    ("llama", Layout(zero=3, dtype="bf16")),
]


def train(config: Path, ranks: int = 1, *words: str, gpu: bool = True) -> int:
    """`python -m pretrain` under torchrun, with more words of its own; returns the exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    if not gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launcher, "-m", "pretrain", str(config), *words]
    return subprocess.run(command, env=environment, timeout=120).returncode


def measured(folder: Path) -> list[dict[str, Any]]:
    """It returns the figures that were computed in each step, without times and throughput."""
    rows = [json.loads(line) for line in (folder / "test/metrics.jsonl").read_text().splitlines()]
    assert rows
    return [
        {
            key: value
            for key, value in row.items()
            if isinstance(value, int | float)
            and not key.startswith(golden.TIMES)
            and not key.endswith("seconds")
        }
        for row in rows
    ]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in measured(folder) if "loss" in row]


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_one_gpu_computes_what_the_cpu_computes(model: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    """Losses, gradient norms and all that the probes measure."""
    for name in ("gpu", "cpu"):
        # Dropout draws other masks on another kind of device.
        config = run_config(
            Layout(zero=1),
            tmp_path / name,
            corpus,
            model={**model, "dropout": 0.0},
            probes={"every_steps": 1},
        )
        assert train(dumped(config, tmp_path / f"{name}.toml"), gpu=name == "gpu") == 0
    ours, theirs = measured(tmp_path / "gpu"), measured(tmp_path / "cpu")
    assert len(ours) == len(theirs)
    for ours_row, theirs_row in zip(ours, theirs, strict=True):
        assert ours_row == pytest.approx(theirs_row, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_compiled_blocks_compute_what_others_do(model: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    """Masks of dropout are the same; recomputation, and a step that probes look at, go through it as well."""
    for compiled in (False, True):
        name = f"compiled_{compiled}".lower()
        changes = {**model, "compile": compiled}
        config = run_config(
            Layout(zero=1, checkpointing=True),
            tmp_path / name,
            corpus,
            model=changes,
            probes={"every_steps": 3},
        )
        assert train(dumped(config, tmp_path / f"{name}.toml")) == 0
    ours, theirs = losses(tmp_path / "compiled_true"), losses(tmp_path / "compiled_false")
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(("model", "layout"), RESUMED, ids=str)
def test_resumed_equals_uninterrupted(model: str, layout: Layout, corpus: Path, tmp_path: Path) -> None:
    for name in ("twin", "run"):
        config = run_config(
            layout, tmp_path / name, corpus, model=MODELS[model], checkpoint={"every_steps": 4}
        )
        assert train(dumped(config, tmp_path / f"{name}.toml")) == 0
    shutil.rmtree(newest_checkpoint(tmp_path / "run"))
    assert train(tmp_path / "run.toml") == 0
    ours, theirs = (contents(newest_checkpoint(tmp_path / name)) for name in ("run", "twin"))
    assert differences(ours, theirs) == []


def test_a_profile_has_the_time_of_the_device_and_a_snapshot_of_its_memory(
    corpus: Path, tmp_path: Path
) -> None:
    config = dumped(run_config(Layout(dtype="bf16"), tmp_path, corpus), tmp_path / "run.toml")
    assert train(config, 1, "--profile", "3-4") == 0
    folder = tmp_path / "test/profiles/step00000003-00000004_rank_00000"
    assert {path.name for path in folder.iterdir()} == {"trace.json.gz", "memory.pickle", "table.txt"}
    heading, *lines = (folder / "table.txt").read_text().splitlines()
    assert "the device was busy" in heading
    times = {line.split()[0]: float(line.split()[-5]) for line in lines}
    assert min(times["forward"], times["backward"], times["update"]) > 0


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
