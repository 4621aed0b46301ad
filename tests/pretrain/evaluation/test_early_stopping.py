"""A run keeps the checkpoint of its lowest validation loss, and ends where its patience is spent."""

from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.runs import metrics, run_and_stop, run_config, run_to_end
from support.training import Layout
from support.watched import kinds

from pretrain.checkpoint.lifecycle import best, candidates
from pretrain.checkpoint.manifest import read_manifest
from pretrain.checkpoint.sealed import open_sealed
from pretrain.checkpoint.tag import Tag
from pretrain.config.run import RunConfig
from pretrain.plan.rules import layout_problems
from pretrain.step import TrainState

PATIENCE, EVERY, LAST = 2, 1, 60
LAYOUTS = [Layout(), Layout(tensor=2, pipeline=2, accumulation=3)]


def config(layout: Layout, folder: Path, corpus: Path, **changes: Any) -> RunConfig:
    """A run that learns 12 samples by heart at a rate that other ones do not gain by for long."""
    sections: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": LAST},
        "optimizer": {"learning_rate": 0.3},
        "checkpoint": {"every_steps": 100, "keep_last": 1},
        "evaluation": {"every_steps": EVERY, "samples": 12, "keep_best": True, "patience": PATIENCE},
        "watchdog": {"enabled": False},
    }
    return run_config(layout, folder, corpus, **{**sections, **changes})


def course(folder: Path) -> dict[int, float]:
    return metrics(folder, "validation_loss")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_it_ends_past_its_best_and_keeps_that(layout: Layout, tmp_path: Path, corpus: Path) -> None:
    run_distributed(run_to_end, layout.world_size, config(layout, tmp_path, corpus))
    losses = course(tmp_path)
    lowest = min(losses, key=losses.__getitem__)
    assert max(losses) == lowest + PATIENCE * EVERY < LAST
    sealed = candidates(tmp_path / "test/checkpoints").sealed
    assert {tag.step for tag in sealed} == {lowest, max(losses)}
    assert open_sealed(tmp_path / "test").step == lowest
    # It is done: started again, it takes no step.
    run_distributed(run_to_end, layout.world_size, config(layout, tmp_path, corpus))
    assert course(tmp_path) == losses
    assert kinds(tmp_path).count("done") == 2


def test_stopped_and_resumed_it_ends_at_the_same_step(tmp_path: Path, corpus: Path) -> None:
    run_distributed(run_to_end, 1, config(Layout(), tmp_path / "whole", corpus))
    losses = course(tmp_path / "whole")
    parts = config(Layout(), tmp_path / "parts", corpus)
    assert run_distributed(run_and_stop, 1, parts, max(losses) - EVERY) == ["preempted"]
    assert run_distributed(run_to_end, 1, parts) == ["finished"]
    assert course(tmp_path / "parts") == losses
    assert open_sealed(tmp_path / "parts/test").step == open_sealed(tmp_path / "whole/test").step


def test_without_patience_it_goes_to_its_last_step(tmp_path: Path, corpus: Path) -> None:
    evaluation = {"every_steps": EVERY, "samples": 12, "keep_best": True}
    patient = config(
        Layout(), tmp_path, corpus, evaluation=evaluation, run={"folder": str(tmp_path), "steps": 16}
    )
    run_distributed(run_to_end, 1, patient)
    losses = course(tmp_path)
    checkpoints = tmp_path / "test/checkpoints"
    newest, *_ = candidates(checkpoints).sealed
    assert newest.step == max(losses) == 16
    lowest = best(checkpoints, candidates(checkpoints).sealed)
    assert lowest
    assert losses[lowest.step] == min(losses.values())
    state = read_manifest(checkpoints / str(newest)).state
    assert (state.best_step, state.best_loss) == (lowest.step, losses[lowest.step])


def test_a_loss_that_is_none_is_never_the_lowest() -> None:
    state = TrainState(step=3).after_validation(float("nan"), keep_best=True)
    assert (state.best_step, state.stale) == (0, 1)
    state = state.after_validation(2.0, keep_best=True)
    assert (state.best_step, state.best_loss, state.stale) == (3, 2.0, 0)
    assert state.after_validation(2.0, keep_best=True).stale == 1
    assert TrainState(step=3).after_validation(2.0, keep_best=False) == TrainState(step=3, validated=3)


def test_no_best_without_a_checkpoint_of_it(tmp_path: Path) -> None:
    assert best(tmp_path, ()) is None
    assert best(tmp_path, (Tag(1, 100),)) is None


def test_patience_needs_a_best_to_keep(tmp_path: Path, corpus: Path) -> None:
    hasty = config(Layout(), tmp_path, corpus, evaluation={"patience": 2})
    assert [problem.key for problem in layout_problems(hasty, 1)] == ["evaluation.patience"]
