"""The life of checkpoints with live engines: back to one and on, certified, condemned, proven, chosen by hand."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.distributed import RankFailed, run_distributed
from support.runs import differences
from support.steps import train
from support.training import Layout, make_config, make_engine, make_mesh

from pretrain.backend.host_copy import copied
from pretrain.checkpoint import checkpoint, lifecycle
from pretrain.checkpoint.certificate import CERTIFICATE, read_certificate
from pretrain.checkpoint.checkpoint import Checkpointer, Compatibility
from pretrain.checkpoint.lifecycle import CONDEMNED, REASON, Candidates, candidates
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.restored import Restored
from pretrain.checkpoint.tag import Tag
from pretrain.config.run import RunConfig
from pretrain.engine.engine import TrainEngine
from pretrain.errors import CheckpointError
from pretrain.step import TrainState

LAYOUT = Layout(tensor=2, zero=1)


@dataclass
class Run:
    """A run in miniature: checkpoints of chosen steps, by an engine that goes on living."""

    folder: Path
    layout: Layout = LAYOUT
    sections: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        base = make_config(self.layout)
        self.config = RunConfig.model_validate({**base.model_dump(mode="json"), **self.sections})
        self.mesh = make_mesh(self.config.parallel)
        self.engine: TrainEngine = make_engine(self.config, self.mesh)
        identity = Compatibility.of(self.config, self.mesh, "fingerprint")
        self.checkpointer = Checkpointer(self.folder, self.config, self.mesh, identity, self.notes.append)
        self.step = 0

    def train_to(self, step: int) -> list[tuple[float, float]]:
        course = train(self.engine, self.config, self.step + 1, step)
        self.step = step
        return course

    def save_at(self, *steps: int) -> list[Tag]:
        tags = []
        for step in steps:
            self.train_to(step)
            state = TrainState(step=step, updates=step)
            saved = self.checkpointer.save(self.engine, state, {"position": 12 * step}, {"sum": step / 4})
            assert saved.tag is not None, saved.problem
            tags.append(saved.tag)
        return tags

    def take_up(self, restored: Restored | None) -> str:
        assert restored is not None
        restored.restore_random_state()
        self.step = restored.state.step
        assert restored.data == {"position": 12 * self.step}
        assert restored.watchdog == {"sum": self.step / 4}
        assert restored.proof
        return str(restored.tag)


def attempt(action: Callable[[], Any]) -> str:
    try:
        return str(action())
    except CheckpointError as error:
        return f"refused: {error}"


def found_in(folder: Path) -> Candidates:
    return candidates(folder)


def latest(folder: Path) -> str:
    return (folder / "latest").read_text() if (folder / "latest").exists() else ""


# Back to a checkpoint in a live engine


def back_and_on(folder: Path, layout: Layout) -> tuple[list[str], list[str]]:
    """Two checkpoints, 2 steps, back to the first and to the second in the same engine: what differs from before."""
    run = Run(folder, layout)
    first, second = run.save_at(2, 3)
    course = run.train_to(5)
    end = copied(run.engine.state())
    run.take_up(run.checkpointer.load(run.engine, first))
    again = run.train_to(5)[1:]
    changed = differences(again, course) + differences(copied(run.engine.state()), end)
    run.take_up(run.checkpointer.load(run.engine, second))
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
    run = Run(folder)
    _, second = run.save_at(1, 2)
    load = run.engine.load

    def faulty(checkpoints: Path, tag: str) -> None:
        load(checkpoints, tag)
        if tag == str(second) and run.mesh.rank == rank:
            with torch.no_grad():
                next(run.engine.module.parameters()).view(-1)[7] += 1e-6

    run.engine.load = faulty  # type: ignore[method-assign]
    return run.take_up(run.checkpointer.load_newest(run.engine)), run.notes


@pytest.mark.parametrize("rank", [0, 1])
def test_weights_that_are_not_those_saved_are_damage(rank: int, tmp_path: Path) -> None:
    for loaded, notes in run_distributed(wrong_weights, 2, tmp_path, rank):
        assert loaded == "step00000001-a1"
        assert f"weights or optimizer on rank {rank} are not those that were saved" in notes[0]
    assert (tmp_path / f"step00000002-a2.quarantined/{REASON}").exists()


def older_format(folder: Path) -> str:
    """A checkpoint from before there were checksums."""
    run = Run(folder)
    (tag,) = run.save_at(1)
    if run.mesh.rank == 0:
        path = folder / str(tag) / MANIFEST
        manifest = json.loads(path.read_text())
        del manifest["checksums"]
        path.write_text(json.dumps(manifest))
    run.mesh.gather(None)
    restored = run.checkpointer.load_newest(run.engine)
    assert restored is not None
    return restored.proof


def test_a_checkpoint_without_checksums_is_read(tmp_path: Path) -> None:
    assert run_distributed(older_format, 2, tmp_path) == ["", ""]


# Certificates


def certified_run(folder: Path) -> list[str]:
    """Three checkpoints; the first two certified; `latest` after each event."""
    run = Run(folder)
    first, second, _ = run.save_at(1, 2, 3)
    seen = [latest(folder)]
    for tag in (first, second, second):
        assert run.checkpointer.certify(tag, 1, {"median_loss": 2.5}) == ""
        seen.append(latest(folder))
    seen += [chosen(run, 3), chosen(run, 1), chosen(run, 3, oldest=True), chosen(run, 0)]
    return seen


def chosen(run: Run, limit_step: int, *, oldest: bool = False) -> str:
    """What a rollback to at most this step would load, with a star if it is certified."""
    choice = run.checkpointer.choose(limit_step, oldest=oldest)
    return f"{choice[0]}{'*' * choice[1]}" if choice else "nothing"


def test_latest_and_choice_go_by_certificates(tmp_path: Path) -> None:
    first, second = "step00000001-a1", "step00000002-a2"
    expected = ["", first, second, second, f"{second}*", f"{first}*", f"{first}*", "nothing"]
    assert run_distributed(certified_run, 2, tmp_path) == [expected] * 2
    certificate = read_certificate(tmp_path / second)
    assert (certificate.step, certificate.horizon, certificate.facts) == (3, 1, {"median_loss": 2.5})


def flipped(folder: Path, owner: int) -> tuple[str, str, list[str]]:
    """A bit of one rank's file flips on disk before the certificate; what certify says, and what is chosen then."""
    run = Run(folder)
    first, second = run.save_at(1, 2)
    run.checkpointer.certify(first, 1, {})
    if run.mesh.rank == owner:
        path = folder / str(second) / f"rank_{owner:05d}.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    run.mesh.gather(None)
    problem = run.checkpointer.certify(second, 1, {})
    return problem, chosen(run, 9), run.notes


@pytest.mark.parametrize("owner", [0, 1])
def test_what_has_changed_on_disk_is_not_certified_but_set_aside(owner: int, tmp_path: Path) -> None:
    for problem, choice, notes in run_distributed(flipped, 2, tmp_path, owner):
        assert f"rank_{owner:05d}.pt: the content has changed" in problem
        assert choice == "step00000001-a1*"
        assert "set aside" in notes[0]
    assert latest(tmp_path) == "step00000001-a1"
    assert not (tmp_path / "step00000002-a2").exists()
    assert not (tmp_path / "step00000002-a2.quarantined" / CERTIFICATE).exists()


def certify_what_cannot_be(folder: Path) -> list[str]:
    run = Run(folder)
    tags = run.save_at(1, 2)
    run.checkpointer.condemn(1, "loss high")
    return [run.checkpointer.certify(tag, 1, {}) for tag in (tags[1], Tag(step=7, attempt=7))]


def test_what_is_condemned_or_gone_is_not_certified(tmp_path: Path) -> None:
    for condemned, gone in run_distributed(certify_what_cannot_be, 2, tmp_path):
        assert condemned.endswith("is condemned")
        assert "No such file" in gone
    assert latest(tmp_path) == ""


# Condemnation


def condemned_run(folder: Path) -> list[Any]:
    """Back to step 1 after trouble: later ones are condemned, and a restart does not load them."""
    run = Run(folder)
    tags = run.save_at(1, 2, 3)
    for tag in tags:
        run.checkpointer.certify(tag, 1, {})
    condemned = run.checkpointer.condemn(1, "loss high since step 2")
    again = run.checkpointer.condemn(1, "loss high since step 2")
    choice = chosen(run, 9)
    loaded = run.take_up(run.checkpointer.load_newest(run.engine))
    new = run.save_at(2)[0]
    newest = run.take_up(run.checkpointer.load_newest(run.engine))
    certified = run.take_up(run.checkpointer.load_preferred(run.engine, 2))
    return [tuple(map(str, condemned)), again, choice, loaded, str(new), newest, certified]


def test_a_restart_passes_over_condemned_ones(tmp_path: Path) -> None:
    first, second, third, new = (f"step{step:08d}-a{n}" for n, step in enumerate((1, 2, 3, 2), start=1))
    expected = [(third, second), (), f"{first}*", first, new, new, first]
    assert run_distributed(condemned_run, 2, tmp_path) == [expected] * 2
    assert latest(tmp_path) == first
    assert found_in(tmp_path).condemned == (Tag(step=3, attempt=3), Tag(step=2, attempt=2))
    assert (tmp_path / second / CONDEMNED).read_text() == "loss high since step 2\n"


def only_condemned(folder: Path) -> str:
    run = Run(folder)
    run.save_at(1)
    run.checkpointer.condemn(0, "bad")
    return attempt(lambda: run.checkpointer.load_newest(run.engine))


def test_a_run_with_nothing_but_condemned_ones_does_not_start_from_scratch(tmp_path: Path) -> None:
    for answer in run_distributed(only_condemned, 2, tmp_path):
        assert "no usable checkpoint is left" in answer
        assert "--resume step00000001-a1 --force-condemned" in answer


def only_torn(folder: Path) -> tuple[str, str]:
    """One save that never ended, for a run whose ledger knows of no other, and for one whose ledger does."""
    run = Run(folder)
    (tag,) = run.save_at(1)
    if run.mesh.rank == 0:
        (folder / str(tag) / MANIFEST).unlink()
    run.mesh.gather(None)
    load = run.checkpointer.load_newest
    return attempt(lambda: load(run.engine)), attempt(lambda: load(run.engine, sealed=True))


def test_only_a_run_that_never_completed_a_checkpoint_starts_from_scratch(tmp_path: Path) -> None:
    for first, lost in run_distributed(only_torn, 2, tmp_path):
        assert first == "None"
        assert "no usable checkpoint is left" in lost


# By hand


def by_hand(folder: Path) -> list[str]:
    run = Run(folder)
    first, second, third = run.save_at(1, 2, 3)
    run.checkpointer.certify(second, 1, {})
    answers = [
        attempt(partial(run.checkpointer.load_tag, run.engine, name)) for name in ("latest", "step7-a1")
    ]
    answers.append(run.take_up(run.checkpointer.load_tag(run.engine, str(first))))
    answers.append(run.take_up(run.checkpointer.load_newest(run.engine)))
    run.save_at(2)
    answers.append(attempt(lambda: run.checkpointer.load_tag(run.engine, str(third))))
    answers.append(run.take_up(run.checkpointer.load_tag(run.engine, str(third), allow_condemned=True)))
    answers.append(run.take_up(run.checkpointer.load_newest(run.engine)))
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
    assert found_in(tmp_path).sealed == (Tag(step=3, attempt=3), Tag(step=1, attempt=1))
    assert latest(tmp_path) == ""


def damaged_by_hand(folder: Path) -> tuple[str, str]:
    run = Run(folder)
    first, _ = run.save_at(1, 2)
    if run.mesh.rank == 0:
        (folder / str(first) / "rank_00001.pt").write_bytes(b"")
    run.mesh.gather(None)
    refused = attempt(lambda: run.checkpointer.load_tag(run.engine, str(first)))
    return refused, run.take_up(run.checkpointer.load_newest(run.engine))


def test_a_damaged_one_that_is_asked_for_is_not_replaced_by_another(tmp_path: Path) -> None:
    for refused, newest in run_distributed(damaged_by_hand, 2, tmp_path):
        assert "is damaged and was set aside" in refused
        assert newest == "step00000002-a2"


def damaged_rollback(folder: Path) -> list[str]:
    """The target is damaged: the newest certified one before it is used, not the newer uncertified one."""
    run = Run(folder)
    tags = run.save_at(1, 2, 3)
    run.checkpointer.certify(tags[0], 1, {})
    if run.mesh.rank == 0:
        (folder / str(tags[2]) / "rank_00001.pt").write_bytes(b"")
    run.mesh.gather(None)
    return [run.take_up(run.checkpointer.load(run.engine, tags[2])), *run.notes]


def test_a_damaged_target_of_a_rollback_is_replaced_by_the_next_best(tmp_path: Path) -> None:
    for loaded, note in run_distributed(damaged_rollback, 2, tmp_path):
        assert loaded == "step00000001-a1"
        assert "step00000003-a3 is damaged and was set aside" in note


# Killed in every gap


def die_in(folder: Path, event: str, before: str) -> None:
    """Rank 0 is killed in an event, before it calls a function of the module that it does so in."""
    run = Run(folder)
    first, second = run.save_at(1, 2)
    assert run.checkpointer.certify(first, 1, {}) == ""
    module = checkpoint if hasattr(checkpoint, before) else lifecycle
    if run.mesh.rank == 0:
        setattr(module, before, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
    if event == "certify":
        run.checkpointer.certify(second, 1, {})
    else:
        run.checkpointer.condemn(1, "bad")


def start_again(folder: Path) -> tuple[str, list[str]]:
    run = Run(folder)
    return run.take_up(run.checkpointer.load_newest(run.engine)), run.notes


OUTCOMES = {
    # event, killed before -> newest at the next start, `latest` then
    ("certify", "certify"): ("step00000002-a2", "step00000001-a1"),
    ("certify", "settle_latest"): ("step00000002-a2", "step00000002-a2"),
    ("certify", "retire"): ("step00000002-a2", "step00000002-a2"),
    ("condemn", "condemn"): ("step00000002-a2", "step00000001-a1"),
    ("condemn", "settle_latest"): ("step00000001-a1", "step00000001-a1"),
}


@pytest.mark.parametrize(("event", "before"), OUTCOMES)
def test_killed_between_any_two_steps_the_next_start_finds_its_way(
    event: str, before: str, tmp_path: Path
) -> None:
    with pytest.raises(RankFailed, match="rank 0 died with exit code -9"):
        run_distributed(die_in, 2, tmp_path, event, before)
    newest, pointed = OUTCOMES[event, before]
    assert run_distributed(start_again, 2, tmp_path) == [(newest, [])] * 2
    assert latest(tmp_path) == pointed
