"""Checkpoints with live engines: certified, refused, condemned, and killed in every gap."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_run import CheckpointRun, attempt, certify, chosen, latest
from support.distributed import RankFailed, run_distributed

from pretrain.checkpoint import folder as checkpoint_folder
from pretrain.checkpoint import writer
from pretrain.checkpoint.certificate import CERTIFICATE, read_certificate
from pretrain.checkpoint.lifecycle import CONDEMNED, candidates
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.checkpoint.tag import Tag


def certified_run(folder: Path) -> list[str]:
    """Three checkpoints; the first two certified; `latest` after each event."""
    run = CheckpointRun(folder)
    first, second, _ = run.save_at(1, 2, 3)
    seen = [latest(folder)]
    for tag in (first, second, second):
        assert certify(run.writer, tag, 1) == ""
        seen.append(latest(folder))
    seen += [chosen(run, 3), chosen(run, 1), chosen(run, 3, oldest=True), chosen(run, 0)]
    return seen


def test_latest_and_choice_go_by_certificates(tmp_path: Path) -> None:
    first, second = "step00000001-a1", "step00000002-a2"
    expected = ["", first, second, second, f"{second}*", f"{first}*", f"{first}*", "nothing"]
    assert run_distributed(certified_run, 2, tmp_path) == [expected] * 2
    certificate = read_certificate(tmp_path / second)
    assert (certificate.step, certificate.horizon) == (3, 1)


def flipped(folder: Path, owner: int) -> tuple[str, str, list[str]]:
    """A bit of one rank's file flips on disk before the certificate; what certify says, and what is chosen then."""
    run = CheckpointRun(folder)
    first, second = run.save_at(1, 2)
    certify(run.writer, first, 1)
    if run.mesh.rank == owner:
        path = folder / str(second) / f"rank_{owner:05d}.pt"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    run.mesh.gather(None)
    problem = certify(run.writer, second, 1)
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
    run = CheckpointRun(folder)
    tags = run.save_at(1, 2)
    run.checkpoints.condemn(1, "loss high")
    return [certify(run.writer, tag, 1) for tag in (tags[1], Tag(step=7, attempt=7))]


def test_what_is_condemned_or_gone_is_not_certified(tmp_path: Path) -> None:
    for condemned, gone in run_distributed(certify_what_cannot_be, 2, tmp_path):
        assert condemned.endswith("is condemned")
        assert "No such file" in gone
    assert latest(tmp_path) == ""


# Condemnation


def condemned_run(folder: Path) -> list[Any]:
    """Back to step 1 after trouble: later ones are condemned, and a restart does not load them."""
    run = CheckpointRun(folder)
    tags = run.save_at(1, 2, 3)
    for tag in tags:
        certify(run.writer, tag, 1)
    condemned = run.checkpoints.condemn(1, "loss high since step 2")
    again = run.checkpoints.condemn(1, "loss high since step 2")
    choice = chosen(run, 9)
    loaded = run.resume(run.loader.load_newest(run.engine))
    new = run.save_at(2)[0]
    newest = run.resume(run.loader.load_newest(run.engine))
    certified = run.resume(run.loader.load_preferred(run.engine, 2))
    return [tuple(map(str, condemned)), again, choice, loaded, str(new), newest, certified]


def test_a_restart_passes_over_condemned_ones(tmp_path: Path) -> None:
    first, second, third, new = (f"step{step:08d}-a{n}" for n, step in enumerate((1, 2, 3, 2), start=1))
    expected = [(third, second), (), f"{first}*", first, new, new, first]
    assert run_distributed(condemned_run, 2, tmp_path) == [expected] * 2
    assert latest(tmp_path) == first
    assert candidates(tmp_path).condemned == (Tag(step=3, attempt=3), Tag(step=2, attempt=2))
    assert (tmp_path / second / CONDEMNED).read_text() == "loss high since step 2\n"


def only_condemned(folder: Path) -> str:
    run = CheckpointRun(folder)
    run.save_at(1)
    run.checkpoints.condemn(0, "bad")
    return attempt(lambda: run.loader.load_newest(run.engine))


def test_a_run_with_nothing_but_condemned_ones_does_not_start_from_scratch(tmp_path: Path) -> None:
    for answer in run_distributed(only_condemned, 2, tmp_path):
        assert "no usable checkpoint is left" in answer
        assert "--resume step00000001-a1 --force-condemned" in answer


def only_torn(folder: Path) -> tuple[str, str]:
    """One save that never ended, for a run whose ledger knows of no other, and for one whose ledger does."""
    run = CheckpointRun(folder)
    (tag,) = run.save_at(1)
    if run.mesh.rank == 0:
        (folder / str(tag) / MANIFEST).unlink()
    run.mesh.gather(None)
    load = run.loader.load_newest
    return attempt(lambda: load(run.engine)), attempt(lambda: load(run.engine, sealed=True))


def test_only_a_run_that_never_completed_a_checkpoint_starts_from_scratch(tmp_path: Path) -> None:
    for first, lost in run_distributed(only_torn, 2, tmp_path):
        assert first == "None"
        assert "no usable checkpoint is left" in lost


# Killed in every gap


def die_in(folder: Path, event: str, before: str) -> None:
    """Rank 0 is killed in an event, before it calls a function of the module that it does so in."""
    run = CheckpointRun(folder)
    first, second = run.save_at(1, 2)
    assert certify(run.writer, first, 1) == ""
    module = next(module for module in (writer, checkpoint_folder) if hasattr(module, before))
    if run.mesh.rank == 0:
        setattr(module, before, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
    if event == "certify":
        certify(run.writer, second, 1)
    else:
        run.checkpoints.condemn(1, "bad")


def start_again(folder: Path) -> tuple[str, list[str]]:
    run = CheckpointRun(folder)
    return run.resume(run.loader.load_newest(run.engine)), run.notes


OUTCOMES = {
    # event, killed before -> newest at the next start, `latest` then
    ("certify", "certify"): ("step00000002-a2", "step00000001-a1"),
    ("certify", "update_latest"): ("step00000002-a2", "step00000002-a2"),
    ("certify", "retire"): ("step00000002-a2", "step00000002-a2"),
    ("condemn", "condemn"): ("step00000002-a2", "step00000001-a1"),
    ("condemn", "update_latest"): ("step00000001-a1", "step00000001-a1"),
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
