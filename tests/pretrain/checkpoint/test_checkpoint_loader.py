"""Back to a checkpoint in a live engine: to the same bits, proven, and chosen by hand."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from support.checkpoint_run import CheckpointRun, attempt, certify, latest
from support.distributed import run_distributed
from support.runs import differences
from support.training import Layout

from pretrain.backend.host_copy import copied
from pretrain.backend.pieces import StateSource
from pretrain.checkpoint.lifecycle import REASON, candidates
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.tag import Tag

# Back to a checkpoint and on


def back_and_on(folder: Path, layout: Layout) -> tuple[list[str], list[str]]:
    """Two checkpoints, 2 steps, back to the first and to the second in the same engine: what differs from before."""
    run = CheckpointRun(folder, layout)
    first, second = run.save_at(2, 3)
    course = run.train_to(5)
    end = copied(run.engine.state())
    run.resume(run.loader.load(run.engine, first))
    again = run.train_to(5)[1:]
    changed = differences(again, course) + differences(copied(run.engine.state()), end)
    run.resume(run.loader.load(run.engine, second))
    again = run.train_to(5)
    changed += differences(again, course) + differences(copied(run.engine.state()), end)
    return changed, run.notes


@pytest.mark.parametrize(
    "layout",
    [
        Layout(tensor=2),
        Layout(pipeline=2, accumulation=3),
        Layout(dtype="bf16", data=2, zero=0),
        Layout(dtype="bf16", data=2, zero=1),
        Layout(data=2, zero=2),
        Layout(dtype="bf16", data=2, zero=3),
        Layout(dtype="bf16", pipeline=2, zero=1, accumulation=3),
    ],
    ids=str,
)
def test_back_to_a_checkpoint_and_on_gives_the_same_bits(layout: Layout, tmp_path: Path) -> None:
    for changed, notes in run_distributed(back_and_on, 2, tmp_path, layout):
        assert changed == []
        assert notes == []


# What is loaded is what was saved


def wrong_weights(folder: Path, rank: int) -> tuple[str, list[str]]:
    """A load that puts one weight of one rank wrong, though every file is sound."""
    run = CheckpointRun(folder)
    run.save_at(1, 2)
    fill, filled = run.engine.fill, []

    def faulty(source: StateSource) -> None:
        fill(source)
        if not filled and run.mesh.rank == rank:  # of the newest one
            with torch.no_grad():
                next(run.engine.module.parameters()).view(-1)[7] += 1e-6
        filled.append(True)

    run.engine.fill = faulty  # type: ignore[method-assign]
    return run.resume(run.loader.load_newest(run.engine)), run.notes


@pytest.mark.parametrize("rank", [0, 1])
def test_weights_that_are_not_those_saved_are_damage(rank: int, tmp_path: Path) -> None:
    for loaded, notes in run_distributed(wrong_weights, 2, tmp_path, rank):
        assert loaded == "step00000001-a1"
        assert f"weights or optimizer on rank {rank} are not those that were saved" in notes[0]
    assert (tmp_path / f"step00000002-a2.quarantined/{REASON}").exists()


def unproven(folder: Path) -> str:
    """A checkpoint without checksums, as conversions write them."""
    run = CheckpointRun(folder)
    (tag,) = run.save_at(1)
    if run.mesh.rank == 0:
        path = folder / str(tag) / MANIFEST
        manifest = json.loads(path.read_text())
        del manifest["checksums"]
        path.write_text(json.dumps(manifest))
    run.mesh.gather(None)
    restored = run.loader.load_newest(run.engine)
    assert restored is not None
    return restored.proof


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    assert run_distributed(unproven, 2, tmp_path) == ["", ""]


def out_of_memory(folder: Path, rank: int) -> tuple[str, list[str]]:
    """One rank has no memory for what is in a sound checkpoint."""
    run = CheckpointRun(folder)
    run.save_at(1)

    def fill(source: StateSource) -> None:
        if run.mesh.rank == rank:
            raise torch.OutOfMemoryError("out of memory")

    run.engine.fill = fill  # type: ignore[method-assign]
    return attempt(partial(run.loader.load_newest, run.engine)), run.notes


def test_a_lack_of_memory_says_nothing_against_a_checkpoint(tmp_path: Path) -> None:
    for answer, notes in run_distributed(out_of_memory, 2, tmp_path, 1):
        assert "rank 1 cannot load it: out of memory; nothing is known against the checkpoint" in answer
        assert notes == []
    assert [str(tag) for tag in candidates(tmp_path).sealed] == ["step00000001-a1"]


# By hand


def by_hand(folder: Path) -> list[str]:
    run = CheckpointRun(folder)
    first, second, third = run.save_at(1, 2, 3)
    certify(run.writer, second, 1)
    answers = [attempt(partial(run.loader.load_tag, run.engine, name)) for name in ("latest", "step7-a1")]
    answers.append(run.resume(run.loader.load_tag(run.engine, str(first))))
    answers.append(run.resume(run.loader.load_newest(run.engine)))
    run.save_at(2)
    answers.append(attempt(lambda: run.loader.load_tag(run.engine, str(third))))
    answers.append(run.resume(run.loader.load_tag(run.engine, str(third), allow_condemned=True)))
    answers.append(run.resume(run.loader.load_newest(run.engine)))
    return answers


def test_a_run_is_taken_back_by_hand_and_stays_there(tmp_path: Path) -> None:
    first, third = "step00000001-a1", "step00000003-a3"
    for answers in run_distributed(by_hand, 2, tmp_path):
        for refusal in answers[:2]:
            assert f"there are: {third}, step00000002-a2, {first}" in refusal
        assert answers[2:4] == [first, first]
        assert "is condemned (left behind: the run was taken back to step00000001-a1 by hand)" in answers[4]
        assert "--force-condemned" in answers[4]
        assert answers[5:] == [third, third]
    assert candidates(tmp_path).sealed == (Tag(step=3, attempt=3), Tag(step=1, attempt=1))
    assert latest(tmp_path) == ""


def damaged_by_hand(folder: Path) -> tuple[str, str]:
    run = CheckpointRun(folder)
    first, _ = run.save_at(1, 2)
    if run.mesh.rank == 0:
        (folder / str(first) / "rank_00001.pt").write_bytes(b"")
    run.mesh.gather(None)
    refused = attempt(lambda: run.loader.load_tag(run.engine, str(first)))
    return refused, run.resume(run.loader.load_newest(run.engine))


def test_a_damaged_one_that_is_asked_for_is_not_replaced_by_another(tmp_path: Path) -> None:
    for refused, newest in run_distributed(damaged_by_hand, 2, tmp_path):
        assert "is damaged and was set aside" in refused
        assert newest == "step00000002-a2"


def damaged_rollback(folder: Path) -> list[str]:
    """The target is damaged: the newest certified one before it is used, not the newer uncertified one."""
    run = CheckpointRun(folder)
    tags = run.save_at(1, 2, 3)
    certify(run.writer, tags[0], 1)
    if run.mesh.rank == 0:
        (folder / str(tags[2]) / "rank_00001.pt").write_bytes(b"")
    run.mesh.gather(None)
    return [run.resume(run.loader.load(run.engine, tags[2])), *run.notes]


def test_a_damaged_target_of_a_rollback_is_replaced_by_the_next_best(tmp_path: Path) -> None:
    for loaded, note in run_distributed(damaged_rollback, 2, tmp_path):
        assert loaded == "step00000001-a1"
        assert "step00000003-a3 is damaged and was set aside" in note
