import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.disk import records

from data_pipeline.parsing import LARGEST_DOCUMENT
from pretrain.checkpoint.manifest import (
    MANIFEST,
    CheckpointLayout,
    FileRecord,
    Manifest,
    read_manifest,
    seal,
    verify,
)
from pretrain.checkpoint.tag import Tag
from pretrain.errors import CheckpointError
from pretrain.step import TrainState

TAG = "step00000100-a1"
NAMES = ("state_00000.pt", "state_00001.pt", "rank_00000.pt")


def step_of(tag: str) -> int:
    parsed = Tag.parse(tag)
    assert parsed is not None
    return parsed.step


def manifest_of(files: dict[str, FileRecord], tag: str = TAG) -> Manifest:
    return Manifest(
        tag=tag,
        layout=CheckpointLayout(tensor=2, pipeline=1, data=1, zero_stage=1, dtype="bf16"),
        config_digest="c0ffee",
        optimizer="adamw",
        run_id="r",
        tensors={},
        data_fingerprint="f00d",
        state=TrainState(step=step_of(tag), updates=99, samples=800, tokens=102_400),
        files=files,
        versions={"torch": "2.13.0"},
    )


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A sealed checkpoint of three torch files of the same size and different content."""
    folder = tmp_path / TAG
    folder.mkdir()
    for number, name in enumerate(NAMES):
        torch.save({"weight": torch.full((256, 256), number, dtype=torch.float32)}, folder / name)
    seal(folder, manifest_of(records(folder, NAMES, rank=0)))
    return folder


def test_sealed_checkpoint_is_sound(sealed: Path) -> None:
    manifest = read_manifest(sealed)
    assert manifest == manifest_of(manifest.files)
    assert manifest.state.step == 100
    assert manifest.total_bytes == sum((sealed / name).stat().st_size for name in NAMES)
    assert verify(sealed, manifest, NAMES) == []
    assert not list(sealed.glob(".*"))


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def punch_hole(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(70_000)
        file.write(bytes(100_000))


def swap_with_neighbour(path: Path) -> None:
    neighbour, aside = path.with_name(NAMES[0]), path.with_suffix(".aside")
    path.rename(aside)
    neighbour.rename(path)
    aside.rename(neighbour)


def link_elsewhere(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    truncate: "bytes, but",
    flip_bit: "SHA-256",
    punch_hole: "SHA-256",
    swap_with_neighbour: "SHA-256",
    Path.unlink: "No such file",
    lambda path: os.truncate(path, 0): "0 bytes, but",
    link_elsewhere: "not a regular file",
    replace_by_pipe: "not a regular file",
}


@pytest.mark.parametrize(("damage", "problem"), DAMAGES.items())
def test_damage_is_found_and_named(sealed: Path, damage: Callable[[Path], None], problem: str) -> None:
    manifest = read_manifest(sealed)
    damage(sealed / NAMES[1])
    problems = verify(sealed, manifest, [NAMES[1]])
    assert len(problems) == 1
    assert problem in problems[0]
    assert NAMES[1] in problems[0]
    assert verify(sealed, manifest, [NAMES[2]]) == []


def test_only_named_files_are_read(sealed: Path) -> None:
    flip_bit(sealed / NAMES[1])
    assert verify(sealed, read_manifest(sealed), [NAMES[0], NAMES[2]]) == []


def test_what_memory_has_and_the_disk_has_lost_is_found(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The content is another one once the system has been told to forget it."""

    def forget(descriptor: int, start: int, length: int, advice: int) -> None:
        assert (start, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        flip_bit(Path(f"/proc/self/fd/{descriptor}").resolve())

    monkeypatch.setattr(os, "posix_fadvise", forget)
    manifest = read_manifest(sealed)
    assert verify(sealed, manifest, NAMES) == []
    assert len(verify(sealed, manifest, NAMES[:1], from_disk=True)) == 1


def test_torch_loads_what_verify_refuses(sealed: Path) -> None:
    """Why there are hashes at all."""
    punch_hole(sealed / NAMES[1])
    torch.load(sealed / NAMES[1], weights_only=True)
    assert verify(sealed, read_manifest(sealed), NAMES) != []


@pytest.mark.parametrize("name", ["state_00007.pt", "../rank_00000.pt"])
def test_file_that_the_manifest_does_not_know_is_refused(sealed: Path, name: str) -> None:
    assert verify(sealed, read_manifest(sealed), [name]) == [f"{sealed / name}: not in the manifest"]


def edit(folder: Path, **changes: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


MANIFEST_DAMAGES = {
    "No such file": lambda folder: (folder / MANIFEST).unlink(),
    "not JSON": lambda folder: truncate(folder / MANIFEST),
    "nested too deeply": lambda folder: (folder / MANIFEST).write_text("[" * 1_000_000),
    "larger than": lambda folder: (folder / MANIFEST).write_text(" " * (LARGEST_DOCUMENT + 1)),
    "format": lambda folder: edit(folder, format=3),
    "surprise": lambda folder: edit(folder, surprise=1),
    "files": lambda folder: edit(folder, files={"../x.pt": {"size": 1, "sha256": "0" * 64, "rank": 0}}),
    "size": lambda folder: edit(folder, files={"x.pt": {"size": "1", "sha256": "0" * 64, "rank": 0}}),
    "manifest of step00000100-a2": lambda folder: edit(folder, tag="step00000100-a2"),
    "symbolic link": lambda folder: link_elsewhere(folder / MANIFEST),
    "not a regular file": lambda folder: replace_by_pipe(folder / MANIFEST),
}


@pytest.mark.parametrize(("message", "damage"), MANIFEST_DAMAGES.items())
def test_bad_manifest_is_refused(sealed: Path, message: str, damage: Callable[[Path], object]) -> None:
    damage(sealed)
    with pytest.raises(CheckpointError, match=message):
        read_manifest(sealed)


def test_folder_under_another_name_is_refused(sealed: Path) -> None:
    with pytest.raises(CheckpointError, match=f"manifest of {TAG}"):
        read_manifest(sealed.rename(sealed.with_name("step00000200-a2")))


@pytest.mark.parametrize("damage", [Path.unlink, truncate])
def test_incomplete_folder_is_not_sealed(sealed: Path, damage: Callable[[Path], None]) -> None:
    manifest = read_manifest(sealed)
    (sealed / MANIFEST).unlink()
    damage(sealed / NAMES[2])
    with pytest.raises(CheckpointError, match=NAMES[2]):
        seal(sealed, manifest)
    assert not (sealed / MANIFEST).exists()


def test_manifest_of_another_tag_does_not_seal(sealed: Path) -> None:
    with pytest.raises(CheckpointError, match="step00000300-a3"):
        seal(sealed, manifest_of(read_manifest(sealed).files, tag="step00000300-a3"))


@pytest.mark.parametrize(
    ("counter", "count", "told"),
    [
        ("step", 40, "state.step is 40, but step00000100-a1 is of step 100"),
        ("step", -5, "state.step is -5, which no run counts to"),
        ("tokens", 2**53, f"state.tokens is {2**53}, which no run counts to"),
        ("lineage", -1, "state.lineage is -1, which no run counts to"),
    ],
)
def test_counters_that_no_run_has_are_refused(sealed: Path, counter: str, count: int, told: str) -> None:
    """A run would go on from them: with a step behind its last one, it would be done."""
    facts = json.loads((sealed / MANIFEST).read_text())
    facts["state"][counter] = count
    (sealed / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match=re.escape(told)):
        read_manifest(sealed)
