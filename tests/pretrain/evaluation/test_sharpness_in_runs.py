"""Runs that measure their sharpness say what `surefoot sharpness` says of their checkpoints, and train as others do."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.runs import metrics, run_config, run_to_end
from support.training import Layout, make_config

from pretrain.commands.__main__ import main
from pretrain.config.run import RunConfig
from pretrain.plan.rules import layout_problems


@pytest.mark.slow
@pytest.mark.parametrize("layout", [Layout(tensor=2), Layout(pipeline=2, data=2, zero=1)], ids=str)
def test_a_row_has_that_of_the_checkpoint_before(
    layout: Layout, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections: dict[str, Any] = {
        "run": {"folder": str(tmp_path), "steps": 6},
        "model": {"num_layers": 2, "hidden_size": 8, "attention": {"num_heads": 2}, "dropout": 0.0},
        "checkpoint": {"every_steps": 4, "keep_last": 10},
        "probes": {"sharpness": True, "sharpness_every_steps": 5},
    }
    run_distributed(run_to_end, layout.world_size, run_config(layout, tmp_path, corpus, **sections))
    found, residual = metrics(tmp_path, "sharpness"), metrics(tmp_path, "sharpness_residual")
    assert found.keys() == residual.keys() == {5}
    (checkpoint,) = (tmp_path / "test/checkpoints").glob("step00000004*")
    words = [str(checkpoint), "--samples", "12", "--trace-vectors", "2", "--json"]
    assert main(["sharpness", *words]) == 0
    (exact,) = json.loads(capsys.readouterr().out)["eigenvalues"]
    assert abs(found[5] - exact["value"]) <= residual[5] + 1e-3 * exact["value"]
    assert 0 < residual[5] < 0.1 * found[5]


def test_bf16_rounds_the_steps_away() -> None:
    config = make_config(Layout(dtype="bf16"))
    asked = {**config.model_dump(mode="json"), "probes": {"sharpness": True}}
    assert not layout_problems(config, 1)
    (problem,) = layout_problems(RunConfig.model_validate(asked), 1)
    assert problem.key == "probes.sharpness"
    assert "precision.dtype = fp32" in problem.rule
