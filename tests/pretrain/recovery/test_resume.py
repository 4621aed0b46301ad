"""Resumed equals uninterrupted, bit for bit: weights, optimizer, losses, next batch, random state."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.distributed import RankFailed, run_distributed
from support.runs import (
    contents,
    differences,
    metrics,
    newest_checkpoint,
    run_and_stop,
    run_config,
    run_to_end,
)
from support.training import Layout, slow

from pretrain.backend import state_file
from pretrain.checkpoint import manifest, rank_files
from pretrain.checkpoint.lifecycle import candidates
from pretrain.config.run import RunConfig
from pretrain.watchdog.policy import judge_finite

LAYOUTS = [
    Layout(accumulation=3),
    Layout(data=2, zero=3),
    Layout(tensor=2, pipeline=2, accumulation=3),
    Layout(dtype="bf16", data=2, zero=1),
    slow(Layout(tensor=2)),
    slow(Layout(pipeline=2, accumulation=3)),
    *(slow(Layout(data=2, zero=stage)) for stage in range(3)),
    slow(Layout(pipeline=2, data=2, zero=1, accumulation=3)),
    slow(Layout(dtype="bf16", data=2, zero=0)),
    slow(Layout(dtype="bf16", data=2, zero=3, checkpointing=True)),
    slow(Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3)),
]


def assert_same_end(folder: Path, twin: Path) -> None:
    """The last checkpoints and all recorded losses are equal, to the bit."""
    ours, theirs = newest_checkpoint(folder), newest_checkpoint(twin)
    assert differences(contents(ours), contents(theirs)) == []
    assert state_of(ours) == state_of(theirs)
    for key in ("loss", "gradient_norm", "learning_rate", "validation_loss"):
        assert metrics(folder, key) == metrics(twin, key)


def state_of(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / "MANIFEST.json").read_text())["state"]
    return state


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_stopped_and_resumed_twice(layout: Layout, corpus: Path, tmp_path: Path) -> None:
    twin, config = (run_config(layout, tmp_path / name, corpus) for name in ("twin", "run"))
    assert set(run_distributed(run_to_end, layout.world_size, twin)) == {"finished"}
    # The signal reaches one rank, not the one that writes; all stop at the same boundary.
    last = layout.world_size - 1
    # The second one comes while the validation of step 4 is due: it is made up for after the resumption.
    for step, stopped_at in ((1, 2), (4, 4)):
        assert set(run_distributed(run_and_stop, layout.world_size, config, step, last)) == {"preempted"}
        assert state_of(newest_checkpoint(tmp_path / "run"))["step"] == stopped_at
    assert set(run_distributed(run_to_end, layout.world_size, config)) == {"finished"}
    assert_same_end(tmp_path / "run", tmp_path / "twin")


def test_the_run_goes_through_several_epochs(corpus: Path) -> None:
    """Else the tests above would not have resumed in the second one."""
    counts = json.loads((corpus / "train/manifest.json").read_text())
    assert counts["samples"] < 5 * 12


# Killed ranks

KILLED = [Layout(tensor=2, zero=1), Layout(pipeline=2, accumulation=3), Layout(data=2, zero=2)]


def die_in_step(config: RunConfig, step: int) -> str:
    """Rank 1 is killed between the backward pass and the update of a step."""

    def judge(report: Any, state: Any) -> Any:
        if report.step == step and int(os.environ["RANK"]) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return judge_finite(report, state)

    return run_to_end(config, judge)


def die_in_save(config: RunConfig, moment: str, rank: int) -> str:
    """A rank is killed in its second save: before its second file, in the thread that forces one to disk,
    or before the manifest."""
    module, name = {
        "write": (state_file.torch, "save"),
        "flush": (rank_files, "fsync_and_hash"),
        "seal": (manifest, "replace_file"),
    }[moment]
    original, calls = getattr(module, name), []

    def fatal(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if saves_begun(config) == 2 and (moment != "write" or len(calls) > 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    if int(os.environ["RANK"]) == rank:
        setattr(module, name, fatal)
    return run_to_end(config)


def saves_begun(config: RunConfig) -> int:
    found = candidates(config.run_folder / "checkpoints")
    return len(found.sealed) + len(found.torn)


@pytest.mark.parametrize("layout", KILLED, ids=str)
def test_killed_in_a_step(layout: Layout, corpus: Path, tmp_path: Path) -> None:
    every = {"every_steps": 3, "keep_last": 10}
    twin, config = (run_config(layout, tmp_path / n, corpus, checkpoint=every) for n in ("twin", "run"))
    run_distributed(run_to_end, 2, twin)
    with pytest.raises(RankFailed, match="rank 1 died with exit code -9"):
        run_distributed(die_in_step, 2, config, 8)  # what step 3 has left is sealed by then
    assert set(run_distributed(run_to_end, 2, config)) == {"finished"}
    assert_same_end(tmp_path / "run", tmp_path / "twin")


@pytest.mark.parametrize(("moment", "rank"), [("write", 1), ("flush", 1), ("seal", 0)])
def test_killed_in_a_save(moment: str, rank: int, corpus: Path, tmp_path: Path) -> None:
    layout = Layout(data=2, zero=1)
    # Without a watchdog, `latest` is the newest sealed one.
    sections = {"checkpoint": {"every_steps": 3, "keep_last": 10}, "watchdog": {"enabled": False}}
    twin, config = (run_config(layout, tmp_path / n, corpus, **sections) for n in ("twin", "run"))
    run_distributed(run_to_end, 2, twin)
    with pytest.raises(RankFailed, match=f"rank {rank} died with exit code -9"):
        run_distributed(die_in_save, 2, config, moment, rank)
    found = candidates(config.run_folder / "checkpoints")
    assert [tag.step for tag in found.sealed] == [3]
    assert [tag.step for tag in found.torn] == [6]
    assert (config.run_folder / "checkpoints/latest").read_text() == str(found.sealed[0])
    assert set(run_distributed(run_to_end, 2, config)) == {"finished"}
    assert_same_end(tmp_path / "run", tmp_path / "twin")
