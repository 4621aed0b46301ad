"""A run may go without validation data: it trains the same, says so, and its checkpoints are certified."""

import os
import shutil
from pathlib import Path

import pytest
from support.distributed import RankFailed, run_distributed
from support.runs import metrics, newest_checkpoint, run_config, run_to_end
from support.training import Layout

from data_pipeline.errors import DataError
from pretrain.config.run import ProbesConfig
from pretrain.evaluation.validate import check_validation


@pytest.fixture
def bare(corpus: Path, tmp_path: Path) -> Path:
    """What `surefoot prepare --validation-fraction 0` makes."""
    return Path(shutil.copytree(corpus, tmp_path / "bare", ignore=shutil.ignore_patterns("validation")))


def test_a_run_without_validation_trains_as_one_with(corpus: Path, bare: Path, tmp_path: Path) -> None:
    layout = Layout(pipeline=2, accumulation=3)
    with_it, without = (
        run_config(layout, tmp_path / name, data, watchdog={"enabled": True})
        for name, data in (("with", corpus), ("without", bare))
    )
    for config in (with_it, without):
        assert set(run_distributed(run_to_end, layout.world_size, config, None)) == {"finished"}
    assert metrics(tmp_path / "without") == metrics(tmp_path / "with")
    assert sorted(metrics(tmp_path / "with", "validation_loss")) == [4, 8]
    assert metrics(tmp_path / "without", "validation_loss") == {}
    assert (newest_checkpoint(tmp_path / "without") / "CERTIFICATE.json").exists()


def train_where_one_host_lacks_it(folder: Path, whole: Path, bare: Path) -> str:
    return run_to_end(run_config(Layout(data=2), folder, bare if int(os.environ["RANK"]) else whole))


def test_ranks_that_see_different_data_do_not_wait_for_each_other(
    corpus: Path, bare: Path, tmp_path: Path
) -> None:
    with pytest.raises(RankFailed, match="rank 0 finds a validation split beside the training data, rank 1"):
        run_distributed(train_where_one_host_lacks_it, 2, tmp_path, corpus, bare)


def test_all_or_none() -> None:
    check_validation([True, True], ProbesConfig(sharpness=True))
    check_validation([False], ProbesConfig())
    with pytest.raises(DataError, match=r"probes\.sharpness = true: is measured on validation data"):
        check_validation([False, False], ProbesConfig(sharpness=True))
