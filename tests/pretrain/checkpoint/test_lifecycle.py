import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.disk import fill, records, small_disk

from pretrain.checkpoint.certificate import CERTIFICATE, certify
from pretrain.checkpoint.lifecycle import (
    CONDEMNED,
    README,
    candidates,
    condemn,
    create_folder,
    discard,
    quarantine,
    reinstate,
    retire,
    size_problems,
    space_problem,
    update_latest,
)
from pretrain.checkpoint.manifest import MANIFEST, CheckpointLayout, Manifest, read_manifest, seal, verify
from pretrain.checkpoint.retention import CONDEMNED_KEPT, Retention
from pretrain.checkpoint.tag import Tag
from pretrain.step import TrainState

LAST = Retention(keep_last=1, keep_every=None, certified=False)
WATCHED = Retention(keep_last=1, keep_every=None, certified=True)
NAMES = ("rank_00000.pt", "state_00000.pt")


def write(checkpoints: Path, step: int, values: int = 64) -> Tag:
    """A folder with files and no manifest yet."""
    tag = create_folder(checkpoints, step)
    for name in NAMES:
        torch.save({"weight": torch.full((values,), float(step))}, checkpoints / str(tag) / name)
    return tag


def save(checkpoints: Path, step: int) -> Tag:
    """A whole checkpoint."""
    tag = write(checkpoints, step)
    folder = checkpoints / str(tag)
    manifest = Manifest(
        tag=str(tag),
        layout=CheckpointLayout(tensor=1, pipeline=1, data=1, zero_stage=1, dtype="fp32"),
        config_digest="c0ffee",
        optimizer="adamw",
        run_id="r",
        tensors={},
        data_fingerprint="f00d",
        state=TrainState(step=step),
        files=records(folder, NAMES, rank=0),
        versions={},
    )
    seal(folder, manifest)
    update_latest(checkpoints, certified=False)
    return tag


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {README}


def latest(checkpoints: Path) -> str:
    return (checkpoints / "latest").read_text()


def test_nothing_there(tmp_path: Path) -> None:
    found = candidates(tmp_path / "checkpoints")
    assert (found.sealed, found.torn) == ((), ())


def test_newest_first_and_torn_ones_apart(tmp_path: Path) -> None:
    first, torn, last = save(tmp_path, 100), write(tmp_path, 200), save(tmp_path, 300)
    found = candidates(tmp_path)
    assert found.sealed == (last, first)
    assert found.torn == (torn,)
    assert latest(tmp_path) == str(last)


def test_a_tag_is_never_used_twice(tmp_path: Path) -> None:
    tags = [save(tmp_path, 100)]
    quarantine(tmp_path, tags[0], "bad")
    tags += [write(tmp_path, 100), save(tmp_path, 200), save(tmp_path, 300)]
    retire(tmp_path, LAST)
    tags += [create_folder(tmp_path, 100), create_folder(tmp_path, 100)]
    assert len(set(tags)) == 6
    assert [tag.attempt for tag in tags] == [1, 2, 3, 4, 5, 6]


def test_files_of_two_attempts_do_not_mix(tmp_path: Path) -> None:
    """A save that was cut short, and the next one at the same step after a restart."""
    torn, whole = write(tmp_path, 100), save(tmp_path, 100)
    assert torn != whole
    stale, fresh = tmp_path / str(torn) / NAMES[0], tmp_path / str(whole) / NAMES[0]
    torch.save({"weight": torch.full((64,), 101.0)}, stale)
    fresh.write_bytes(stale.read_bytes())
    folder = tmp_path / str(whole)
    assert "SHA-256" in verify(folder, read_manifest(folder), NAMES)[0]


@pytest.fixture
def crowded(tmp_path: Path) -> tuple[Path, Tag]:
    """One sound checkpoint among things that look like checkpoints."""
    checkpoints = tmp_path / "checkpoints"
    tag = save(checkpoints, 100)
    outside = tmp_path / "step00009999-a9"
    outside.mkdir()
    (outside / MANIFEST).write_text("{}")
    (checkpoints / "step00008888-a8").symlink_to(outside)
    (checkpoints / "global_step7777").mkdir()
    (checkpoints / "step00006666-a6").write_text("a file")
    (checkpoints / "step00005555-a5.quarantined").mkdir()
    return checkpoints, tag


def test_only_folders_with_well_formed_names_count(crowded: tuple[Path, Tag]) -> None:
    checkpoints, tag = crowded
    assert candidates(checkpoints).sealed == (tag,)
    assert candidates(checkpoints).torn == ()


@pytest.mark.parametrize("text", ["../step00009999-a9", "global_step7777", "step00004444-a4", "", "\0"])
def test_what_latest_says_does_not_matter(crowded: tuple[Path, Tag], text: str) -> None:
    checkpoints, tag = crowded
    (checkpoints / "latest").write_text(text)
    assert candidates(checkpoints).sealed == (tag,)
    update_latest(checkpoints, certified=False)
    assert latest(checkpoints) == str(tag)


def test_latest_that_is_a_link_is_replaced_and_not_followed(crowded: tuple[Path, Tag]) -> None:
    checkpoints, tag = crowded
    target = checkpoints.parent / "target"
    target.write_text("untouched")
    (checkpoints / "latest").unlink()
    (checkpoints / "latest").symlink_to(target)
    update_latest(checkpoints, certified=False)
    assert target.read_text() == "untouched"
    assert latest(checkpoints) == str(tag)


def test_quarantine_keeps_the_evidence(tmp_path: Path) -> None:
    sound, bad = save(tmp_path, 100), save(tmp_path, 200)
    aside = quarantine(tmp_path, bad, "rank 3: SHA-256 differs")
    assert names(aside) == {*NAMES, MANIFEST, "QUARANTINE.txt"}
    assert (aside / "QUARANTINE.txt").read_text() == "rank 3: SHA-256 differs\n"
    assert candidates(tmp_path).sealed == (sound,)
    update_latest(tmp_path, certified=False)
    assert latest(tmp_path) == str(sound)


def test_no_latest_without_a_checkpoint(tmp_path: Path) -> None:
    quarantine(tmp_path, save(tmp_path, 100), "bad")
    update_latest(tmp_path, certified=False)
    assert not (tmp_path / "latest").exists()


def certified(checkpoints: Path, step: int) -> Tag:
    tag = save(checkpoints, step)
    certify(checkpoints / str(tag), step=step + 10, horizon=10)
    return tag


def test_latest_is_the_newest_certified_one_that_is_not_condemned(tmp_path: Path) -> None:
    plain, first, second = save(tmp_path, 100), certified(tmp_path, 200), certified(tmp_path, 300)
    newest = save(tmp_path, 400)

    def settled() -> str:
        update_latest(tmp_path, certified=True)
        return latest(tmp_path) if (tmp_path / "latest").exists() else ""

    assert settled() == str(second)
    condemn(tmp_path, second, "loss rose")
    assert settled() == str(first)
    condemn(tmp_path, first, "loss rose")
    assert settled() == ""
    reinstate(tmp_path, second)
    assert settled() == str(second)
    update_latest(tmp_path, certified=False)
    assert latest(tmp_path) == str(newest)
    assert candidates(tmp_path).sealed == (newest, second, plain)


def test_condemned_ones_are_evidence_and_no_candidates(tmp_path: Path) -> None:
    sound, bad = certified(tmp_path, 100), certified(tmp_path, 200)
    condemn(tmp_path, bad, "loss high since step 150")
    found = candidates(tmp_path)
    assert (found.sealed, found.condemned) == ((sound,), (bad,))
    assert found.certified == {sound: 110}
    assert (tmp_path / str(bad) / CONDEMNED).read_text() == "loss high since step 150\n"
    assert {*NAMES, MANIFEST} < names(tmp_path / str(bad))


def test_a_few_condemned_ones_are_kept_beside_what_counts(tmp_path: Path) -> None:
    sound = save(tmp_path, 100)
    bad = [save(tmp_path, 200 + step) for step in range(CONDEMNED_KEPT + 2)]
    for tag in bad:
        condemn(tmp_path, tag, "bad")
    assert retire(tmp_path, LAST) == [bad[1], bad[0]]
    assert candidates(tmp_path).sealed == (sound,)
    assert candidates(tmp_path).condemned == tuple(reversed(bad[2:]))


def test_what_a_rollback_may_go_to(tmp_path: Path) -> None:
    tags = [save(tmp_path, 10), certified(tmp_path, 20), certified(tmp_path, 30), save(tmp_path, 40)]
    found = candidates(tmp_path)
    assert found.preferred(40) == (tags[2], tags[1], tags[3], tags[0])
    assert found.preferred(40, oldest=True) == (tags[1], tags[2], tags[0], tags[3])
    assert found.preferred(15) == (tags[0],)
    assert found.preferred(9) == ()


def test_a_watched_run_deletes_nothing_before_two_newer_certificates(tmp_path: Path) -> None:
    tags = [save(tmp_path, step) for step in (10, 20, 30, 40)]
    assert retire(tmp_path, WATCHED) == []
    certify(tmp_path / str(tags[2]), step=45, horizon=15)
    assert retire(tmp_path, WATCHED) == []
    certify(tmp_path / str(tags[3]), step=55, horizon=15)
    assert retire(tmp_path, WATCHED) == tags[:2]


@pytest.mark.parametrize("damage", ["", "{}", '{"format": 1}', "foreign", "older manifest"])
def test_a_certificate_that_does_not_hold_is_none(tmp_path: Path, damage: str) -> None:
    first, second = certified(tmp_path, 100), certified(tmp_path, 200)
    folder = tmp_path / str(second)
    if damage == "foreign":
        (folder / CERTIFICATE).write_bytes((tmp_path / str(first) / CERTIFICATE).read_bytes())
    elif damage == "older manifest":
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text() + "\n")
    else:
        (folder / CERTIFICATE).write_text(damage)
    found = candidates(tmp_path)
    assert found.sealed == (second, first)
    assert list(found.certified) == [first]


def test_retire_keeps_last_every_torn_and_quarantined(tmp_path: Path) -> None:
    tags = [save(tmp_path, step) for step in (100, 200, 300, 400, 500)]
    torn = write(tmp_path, 600)
    aside = quarantine(tmp_path, tags[2], "bad")
    assert retire(tmp_path, Retention(2, 200, certified=False)) == [tags[0]]
    assert names(tmp_path) == {*map(str, (tags[1], tags[3], tags[4], torn)), aside.name, "latest"}


def test_torn_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    sound = save(tmp_path, 100)
    write(tmp_path, 200)
    assert retire(tmp_path, LAST) == []
    assert candidates(tmp_path).sealed == (sound,)


def test_retire_ends_what_a_crash_left(tmp_path: Path) -> None:
    save(tmp_path, 100)
    leftover = tmp_path / ".retired-step00000050-a1"
    leftover.mkdir()
    (leftover / MANIFEST).write_text("{}")
    retire(tmp_path, LAST)
    assert not leftover.exists()


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_lifecycle import LAST, save, write
from pretrain.checkpoint.lifecycle import retire

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

{code}
"""


def run_until_killed(code: str) -> None:
    source = KILLED.format(path=sys.path, code=code)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_between_manifest_and_its_rename(tmp_path: Path) -> None:
    sound = save(tmp_path, 100)
    run_until_killed(f"Path.rename = die; save(Path({str(tmp_path)!r}), 200)")
    found = candidates(tmp_path)
    assert found.sealed == (sound,)
    assert [tag.step for tag in found.torn] == [200]
    assert any(name.startswith(f".{MANIFEST}.") for name in names(tmp_path / str(found.torn[0])))
    assert latest(tmp_path) == str(sound)
    again = save(tmp_path, 200)
    assert candidates(tmp_path).sealed == (again, sound)


def test_killed_in_the_middle_of_deleting(tmp_path: Path) -> None:
    """What is left of the deleted checkpoint is not taken for one, and goes with the next."""
    save(tmp_path, 100)
    new = save(tmp_path, 200)
    run_until_killed(f"shutil.rmtree = die; retire(Path({str(tmp_path)!r}), LAST)")
    assert candidates(tmp_path).sealed == (new,)
    assert candidates(tmp_path).torn == ()
    retire(tmp_path, LAST)
    assert names(tmp_path) == {str(new), "latest"}


@pytest.mark.parametrize("moment", ["written", "renamed"])
def test_killed_while_a_checkpoint_is_certified(tmp_path: Path, moment: str) -> None:
    """Before the certificate is in place, or between it and `latest`."""
    old, new = certified(tmp_path, 100), save(tmp_path, 200)
    update_latest(tmp_path, certified=True)
    call = f"certify(Path({str(tmp_path / str(new))!r}), step=210, horizon=10)"
    dying = {"written": f"Path.rename = die; {call}", "renamed": f"{call}; die()"}[moment]
    run_until_killed(f"from pretrain.checkpoint.certificate import certify; {dying}")
    assert latest(tmp_path) == str(old)
    assert candidates(tmp_path).sealed == (new, old)
    update_latest(tmp_path, certified=True)
    assert latest(tmp_path) == str(new if moment == "renamed" else old)
    certify(tmp_path / str(new), step=210, horizon=10)
    assert list(candidates(tmp_path).certified) == [new, old]


@pytest.mark.parametrize("moment", ["written", "renamed"])
def test_killed_while_a_checkpoint_is_condemned(tmp_path: Path, moment: str) -> None:
    """Before the mark is in place, or between it and `latest`."""
    old, new = certified(tmp_path, 100), certified(tmp_path, 200)
    update_latest(tmp_path, certified=True)
    call = f"condemn(Path({str(tmp_path)!r}), candidates(Path({str(tmp_path)!r})).sealed[0], 'bad')"
    dying = {"written": f"Path.rename = die; {call}", "renamed": f"{call}; die()"}[moment]
    run_until_killed(f"from pretrain.checkpoint.lifecycle import candidates, condemn; {dying}")
    assert candidates(tmp_path).condemned == ((new,) if moment == "renamed" else ())
    update_latest(tmp_path, certified=True)
    assert latest(tmp_path) == str(old if moment == "renamed" else new)
    condemn(tmp_path, new, "bad")
    update_latest(tmp_path, certified=True)
    assert latest(tmp_path) == str(old)


def test_disk_full_while_files_are_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size=256 * 1024) as disk:
        sound = save(disk, 100)
        before = (disk / str(sound) / MANIFEST).read_bytes()
        with pytest.raises((OSError, RuntimeError)):
            write(disk, 200, values=10**6)
        torn = candidates(disk).torn
        assert [tag.step for tag in torn] == [200]
        assert space_problem(disk, needed=4_000_000) is not None
        discard(disk, torn)
        assert (disk / str(sound) / MANIFEST).read_bytes() == before
        again = save(disk, 200)
        assert again != torn[0]
        assert candidates(disk).sealed == (again, sound)
        assert retire(disk, Retention(2, None, certified=False)) == []
        assert names(disk) == {str(sound), str(again), "latest"}


def test_disk_full_at_the_manifest(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size=256 * 1024) as disk:
        sound, tag = save(disk, 100), write(disk, 200)
        folder = disk / str(tag)
        files = records(folder, NAMES, rank=0)
        manifest = read_manifest(disk / str(sound)).model_copy(update={"tag": str(tag), "files": files})
        ballast = fill(disk)
        with pytest.raises(OSError, match="No space left"):
            seal(folder, manifest)
        assert candidates(disk).sealed == (sound,)
        ballast.unlink()
        seal(folder, manifest)
        assert candidates(disk).sealed == (tag, sound)


def test_space(tmp_path: Path) -> None:
    assert space_problem(tmp_path, needed=1) is None
    assert "909 TiB are needed" in str(space_problem(tmp_path, needed=10**15))


def test_folder_says_what_other_scripts_can_do_with_its_files(tmp_path: Path) -> None:
    """And is written once: people may add to it."""
    create_folder(tmp_path / "checkpoints", 1)
    about = tmp_path / "checkpoints" / "README.txt"
    assert "zero_to_fp32" in about.read_text()
    about.write_text("mine")
    create_folder(tmp_path / "checkpoints", 2)
    assert about.read_text() == "mine"


def test_files_that_are_missing_or_cut_are_named_without_reading_them(tmp_path: Path) -> None:
    folder = tmp_path / str(save(tmp_path, 3))
    assert size_problems(folder) == ""
    (folder / NAMES[0]).write_bytes(b"cut")
    (folder / NAMES[1]).unlink()
    first, second = size_problems(folder).split("; ")
    assert "rank_00000.pt: 3 bytes, but" in first
    assert "state_00000.pt: No such file" in second
