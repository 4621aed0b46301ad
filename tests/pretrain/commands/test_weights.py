"""`surefoot inspect RUN --weights`: every tensor of a checkpoint by name, the same in every layout."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.distributed import run_distributed
from support.runs import run_config, run_to_end
from support.training import Layout

from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.sealed import open_sealed
from pretrain.commands.__main__ import main
from pretrain.commands.weights.run import norm_of
from pretrain.models.named import WEIGHT

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_distributed(run_to_end, 2, run_config(Layout(tensor=2, zero=1), folder, corpus))
    return folder / "test"


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    assert main(["weights", *words, "--json"]) == 0
    tensors: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["tensors"]
    return tensors


def test_all_tensors_are_listed_and_described(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = open_sealed(run).tensors
    found = listed(capsys, str(run), "--moments")
    names = [(one["name"], one["kind"]) for one in found]
    assert names == [(name, kind) for name in saved.names for kind in saved.kinds(name)]
    assert {kind for _, kind in names} == {WEIGHT, "exp_avg", "exp_avg_sq"}
    for one in found:
        tensor = saved.read(one["name"], one["kind"])
        assert (tuple(one["shape"]), one["dtype"]) == (tuple(tensor.shape), "F32")
        assert one["norm"] == pytest.approx(tensor.double().norm().item(), rel=1e-12)
        assert one["sha256"] == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_a_conversion_changes_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["convert", str(run), "--out", str(tmp_path / "out"), "--tensor", "1", "--pipeline", "2"]) == 0
    )
    capsys.readouterr()
    assert listed(capsys, str(run)) == listed(capsys, str(tmp_path / "out"))


def test_names_do_not_control_a_terminal(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(open_sealed(run).folder, tmp_path / open_sealed(run).folder.name))
    manifest = json.loads((copied / MANIFEST).read_text())
    for path in copied.glob("*.safetensors"):
        path.write_bytes(path.read_bytes().replace(b'"exp_avg/', b'"\\u001b[/'))
        manifest["files"][path.name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copied / MANIFEST).write_text(json.dumps(manifest))
    assert main(["weights", str(copied), "--moments"]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert r"  \x1b[" in told


def test_what_is_not_finite_has_no_norm() -> None:
    assert norm_of(torch.tensor([1.0, float("nan")])) is None
    assert norm_of(torch.tensor([3.0, 4.0]).bfloat16()) == 5.0


def test_inspect_leads_there(run: Path) -> None:
    words = ["inspect", f"{run}@{open_sealed(run).folder.name}", "--weights"]
    command = [sys.executable, "-c", f"import sys; from launch.cli import main; sys.exit(main({words!r}))"]
    answer = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    first = answer.stdout.splitlines()[0].split()
    assert first[:4] == ["embedding.weight", "384", "x", "16"]
