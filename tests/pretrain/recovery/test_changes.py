"""A run tells with which settings it goes on that it has not had before, also after an edit of its `config.toml`."""

import shlex
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
    assert note.startswith("settings have changed: optimizer.learning_rate 0.01 -> 0.5; to go on as before: ")


def test_the_way_back_is_one(saved: RunConfig) -> None:
    """Also when `config.toml` has the new settings, as it has when the line can be read."""
    others = ["optimizer.learning_rate=0.5", "run.seed=3", "precision.dtype=bf16", "parallel.zero_stage=1"]
    config = load_config(saved.run_folder, others)
    words = shlex.split(changes_of(config, None)[1].rpartition("to go on as before: ")[2])
    (saved.run_folder / "config.toml").write_text(dump_config(config))
    assert words[:5] == ["surefoot", "train", str(saved.run_folder), "--resume", "step00000008-a2"]
    assert words[5::2] == ["--set"] * len(others)
    assert load_config(words[2], words[6::2]) == saved


def test_the_way_back_to_more_than_words_is_a_file(saved: RunConfig, tmp_path: Path) -> None:
    config = run_config(Layout(), tmp_path, tmp_path / "other data")
    stands = saved.run_folder / "checkpoints/step00000008-a2/config.toml"
    assert changes_of(config, None)[1].endswith(f"; {stands} has them as they were")


def test_a_run_that_was_moved_is_where_it_is(saved: RunConfig) -> None:
    moved = saved.run_folder.rename(saved.run_folder.with_name("moved"))
    assert changes_of(load_config(moved), None) == (
        {"run.name": "test -> moved"},
        "settings have changed: run.name test -> moved",
    )


def test_what_counts_is_the_checkpoint_that_is_asked_for(saved: RunConfig) -> None:
    assert changes_of(saved, "step00000004-a1")[0] == {"optimizer.learning_rate": "0.02 -> 0.01"}
    assert changes_of(saved, "step00000006-a9") == ({}, ""), "there is none"
