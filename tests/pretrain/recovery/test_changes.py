"""A run tells with which settings it goes on that it has not had before, also after an edit of its `config.toml`."""

from pathlib import Path

import pytest
from support.runs import run_config
from support.training import Layout

from pretrain.config.loader import dump_config, load_config
from pretrain.config.run import RunConfig
from pretrain.recovery.changes import changes_of


@pytest.fixture
def saved(tmp_path: Path) -> RunConfig:
    """It is the configuration of a run that has saved a checkpoint, and one before it with another learning rate."""
    config = run_config(Layout(), tmp_path, tmp_path / "data")
    write(config, "step00000004-a1", config.optimizer.learning_rate * 2)
    write(config, "step00000008-a2", config.optimizer.learning_rate)
    (config.run_folder / "config.toml").write_text(dump_config(config))
    return config


def write(config: RunConfig, tag: str, learning_rate: float) -> None:
    """It makes what looks like a sealed checkpoint."""
    folder = config.run_folder / "checkpoints" / tag
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").touch()
    other = config.optimizer.model_copy(update={"learning_rate": learning_rate})
    (folder / "config.toml").write_text(dump_config(config.model_copy(update={"optimizer": other})))


def test_an_edited_configuration_is_told(saved: RunConfig) -> None:
    assert changes_of(saved, None) == ({}, "")
    own = saved.run_folder / "config.toml"
    own.write_text(own.read_text().replace("learning_rate = 0.01", "learning_rate = 0.5"))
    changes, note = changes_of(load_config(saved.run_folder), None)
    assert changes == {"optimizer.learning_rate": "0.01 -> 0.5"}
    assert note == "settings have changed: optimizer.learning_rate 0.01 -> 0.5"


def test_the_remedy_is_one(saved: RunConfig) -> None:
    """`config.toml` has what another command line leaves out, but no run is where it was before it was moved."""
    config = load_config(saved.run_folder, ["optimizer.learning_rate=0.5"])
    assert changes_of(config, None)[1].endswith(
        f"; surefoot train {saved.run_folder} takes them as they were"
    )
    moved = saved.run_folder.rename(saved.run_folder.with_name("moved"))
    assert changes_of(load_config(moved), None) == (
        {"run.name": "test -> moved"},
        "settings have changed: run.name test -> moved",
    )


def test_what_counts_is_the_checkpoint_that_is_asked_for(saved: RunConfig) -> None:
    assert changes_of(saved, "step00000004-a1")[0] == {"optimizer.learning_rate": "0.02 -> 0.01"}
    assert changes_of(saved, "step00000006-a9") == ({}, ""), "there is none"
