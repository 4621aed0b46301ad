"""A run on series that is stopped within an epoch goes on as if it had not been."""

from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.forecasting_model import LOOKBACK, forecasting_config
from support.plain_sam import with_sam
from support.resumes import course, stop_twice
from support.runs import contents, differences, metrics, newest_checkpoint, run_and_stop, run_to_end
from support.series import write_series
from support.training import Layout, slow
from torch import Tensor

from pretrain.config.run import RunConfig
from pretrain.engine.sharpness_aware import FirstPass, SharpnessAware
from pretrain.optim.config import SharpnessAwareConfig

ROWS = 120
"""Of which 84 train: 53 windows, and a global batch has 12, so no epoch ends with a step."""
NO_SAM = SharpnessAwareConfig()
SAM = SharpnessAwareConfig(rho=0.7, every_steps=2)
"""Runs stop after step 2, which has two passes, and 7, which has one."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("series") / "data", ROWS, context=LOOKBACK)


def series_run(
    layout: Layout,
    folder: Path,
    data: Path,
    model: dict[str, Any],
    sam: SharpnessAwareConfig,
) -> RunConfig:
    """It configures a run of 8 steps in `folder/test`."""
    plain = forecasting_config(layout, model)
    base = with_sam(plain, plain.optimizer, sam).model_dump(mode="json")
    changes: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": 8},
        "data": {"sources": [{"path": str(data)}]},
        "checkpoint": {"every_steps": 100, "keep_last": 10},
        "evaluation": {"every_steps": 4},
        "journal": {"console": "none", "tensorboard": False},
    }
    return RunConfig.model_validate(
        base | {name: {**base[name], **section} for name, section in changes.items()}
    )


@pytest.mark.parametrize(
    ("layout", "model", "sam"),
    [
        (Layout(data=2, zero=1), {"dropout": 0.1, "reparametrization": "sigma"}, SAM),
        slow(Layout(tensor=2, pipeline=2, accumulation=2), {}, SAM),
        slow(Layout(), {"kind": "tsmixer", "dropout": 0.5}, NO_SAM),
        slow(Layout(pipeline=2, accumulation=2, dtype="bf16", zero=1), {"kind": "temporal"}, NO_SAM),
    ],
    ids=str,
)
def test_resumed_is_uninterrupted_to_the_bit(
    layout: Layout, model: dict[str, Any], sam: SharpnessAwareConfig, data: Path, tmp_path: Path
) -> None:
    twin = series_run(layout, tmp_path / "twin", data, model, sam)
    assert set(run_distributed(run_to_end, layout.world_size, twin)) == {"finished"}
    stop_twice([(series_run(layout, tmp_path / "run", data, model, sam), layout.world_size)] * 3)
    assert course(tmp_path / "run") == course(tmp_path / "twin")
    for key in ("ascended_loss", "ascent_gradient_norm"):
        ascents = metrics(tmp_path / "run", key)
        assert ascents == metrics(tmp_path / "twin", key)
        assert sorted(ascents) == ([2, 4, 6, 8] if sam is SAM else [])
    ours, theirs = (newest_checkpoint(tmp_path / name) for name in ("run", "twin"))
    assert differences(contents(ours), contents(theirs)) == []
    scaled, original = (metrics(tmp_path / "run", f"validation_{key}") for key in ("mae", "mae_original"))
    assert scaled.keys() == original.keys() == {4, 8}
    assert all(original[step] > 2 * scaled[step] for step in scaled), "the first column counts rows"


class Crashed(BaseException):
    """Nothing knows of it."""


def crash_between_passes(config: RunConfig) -> str:
    """It trains until the weights have ascended, and dies there."""
    ascend = SharpnessAware.ascend

    def ascend_and_die(self: SharpnessAware, loss: Tensor) -> FirstPass:
        ascend(self, loss)
        raise Crashed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharpnessAware, "ascend", ascend_and_die)
        with pytest.raises(Crashed):
            run_to_end(config)
    return "crashed"


def test_a_crash_between_the_passes_of_a_step_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    """In step 6, when the last checkpoint is that of step 4: none is made of weights that have ascended."""
    twin, run = (
        series_run(Layout(data=2, zero=1), tmp_path / name, data, {"dropout": 0.1}, SAM)
        for name in ("twin", "run")
    )
    assert set(run_distributed(run_to_end, 2, twin)) == {"finished"}
    assert set(run_distributed(run_and_stop, 2, run, 3)) == {"preempted"}
    stopped = newest_checkpoint(tmp_path / "run")
    assert run_distributed(crash_between_passes, 2, run) == ["crashed"] * 2
    assert newest_checkpoint(tmp_path / "run") == stopped
    assert set(run_distributed(run_to_end, 2, run)) == {"finished"}
    assert course(tmp_path / "run") == course(tmp_path / "twin")
    ours, theirs = (newest_checkpoint(tmp_path / name) for name in ("run", "twin"))
    assert differences(contents(ours), contents(theirs)) == []
