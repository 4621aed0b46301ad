"""`surefoot sharpness`: eigenvalues and trace of the Hessian of a checkpoint's validation loss."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.runs import run_config, run_to_end
from support.training import SEQUENCE, Layout

from pretrain.commands.__main__ import main


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    layout = Layout(tensor=2, dtype="bf16", accumulation=6)
    config = run_config(layout, folder, corpus, model={"reparametrization": "sigma"})
    run_distributed(run_to_end, 2, config)
    return folder / "test"


def measured(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["sharpness", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_precisions_agree(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(run), "--samples", "2", "--top", "2", "--trace-vectors", "2")
    fp32, fp64 = measured(capsys, *words), measured(capsys, *words, "--fp64")
    assert (fp32["precision"], fp64["precision"]) == ("fp32", "fp64")
    assert fp32["targets"] == 2 * SEQUENCE
    assert fp32["by"] == "W and gamma"
    assert fp32["loss"] == pytest.approx(fp64["loss"], rel=1e-5)
    for ours, theirs in zip(fp32["eigenvalues"], fp64["eigenvalues"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-4)
        assert 0 < theirs["residual"] < ours["residual"] < 1e-3 * ours["value"]
    assert fp64["eigenvalues"][0]["value"] > fp64["eigenvalues"][1]["value"]
    assert fp32["trace"]["value"] == pytest.approx(fp64["trace"]["value"], rel=1e-4)


def test_people_read_the_same(run: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (str(run), "--data", str(corpus), "--samples", "2", "--trace-vectors", "2")
    found = measured(capsys, *words)
    assert main(["sharpness", *words]) == 0
    told = capsys.readouterr().out
    (one,) = found["eigenvalues"]
    assert f"{one['value']:.7g}   residual {one['residual']:.1e}" in told
    assert f"{found['trace']['value']:.7g}   standard error" in told
    assert f"validation data of {corpus}: {2 * SEQUENCE} tokens, loss {found['loss']:.6f}" in told


def test_one_vector_has_no_spread(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sharpness", str(run), "--trace-vectors", "1"]) == 2
    assert "--trace-vectors: must be at least 2" in capsys.readouterr().err


def test_an_export_has_no_data_of_its_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", "huggingface", "--out", str(tmp_path / "out")]) == 0
    assert main(["sharpness", str(tmp_path / "out")]) == 3
    assert "has no data of its own; give it --data" in capsys.readouterr().err
