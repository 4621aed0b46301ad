"""Checkpoints of several ranks: found sound or set aside by all alike, and never loaded into the wrong run."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.disk import small_disk
from support.distributed import run_distributed
from support.malicious_pickle import malicious_files
from support.runs import contents, differences, metrics, newest_checkpoint, run_config, run_to_end
from support.training import Layout

from pretrain.checkpoint.lifecycle import REASON, candidates
from pretrain.checkpoint.manifest import MANIFEST
from pretrain.config.run import RunConfig
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.runtime.run_lock import RunLock

LAYOUT = Layout(tensor=2, zero=1)


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps with checkpoints of steps 3, 6 and 8."""
    folder = tmp_path_factory.mktemp("finished")
    run_distributed(run_to_end, 2, config_of(folder, corpus))
    return folder


def config_of(folder: Path, corpus: Path, layout: Layout = LAYOUT, **sections: object) -> RunConfig:
    sections = {"checkpoint": {"every_steps": 3}, **sections}
    return run_config(layout, folder, corpus, **sections)  # type: ignore[arg-type]


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished run, put back to before its last checkpoint."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(newest_checkpoint(tmp_path / "run"))
    return tmp_path / "run"


def steps(folder: Path) -> list[int]:
    return [tag.step for tag in candidates(folder / "test/checkpoints").sealed]


def outcome(config: RunConfig) -> str:
    """What a rank ends with: `finished`, or its error."""
    try:
        return run_to_end(config)
    except (CheckpointError, ConfigurationError) as error:
        return f"{type(error).__name__}: {error}"


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    """Exchange the two tensor ranks' files."""
    other = path.with_name(path.name.replace("00001", "00000"))
    kept = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(kept)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit flip": flip_a_bit,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
    "swapped": swap,
    "manifest missing": lambda path: path.with_name(MANIFEST).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    damage: str, copy: Path, finished: Path, corpus: Path
) -> None:
    newest = newest_checkpoint(copy)
    DAMAGES[damage](newest / "state_00001.safetensors")
    assert run_distributed(outcome, 2, config_of(copy, corpus)) == ["finished"] * 2
    aside = newest.with_name(f"{newest.name}.quarantined")
    assert ("MANIFEST" if damage == "manifest missing" else "state_0000") in (aside / REASON).read_text()
    assert differences(contents(newest_checkpoint(copy)), contents(newest_checkpoint(finished))) == []
    assert metrics(copy) == metrics(finished)


def test_files_of_two_checkpoints_do_not_mix(copy: Path, corpus: Path) -> None:
    newest = newest_checkpoint(copy)
    (older,) = newest.parent.glob("step00000003*")
    name = "state_00001.safetensors"
    shutil.copy(older / name, newest / name)
    assert run_distributed(outcome, 2, config_of(copy, corpus)) == ["finished"] * 2
    assert newest.with_name(f"{newest.name}.quarantined").is_dir()


def test_without_a_sound_checkpoint_the_run_does_not_start_from_scratch(copy: Path, corpus: Path) -> None:
    for tag in candidates(copy / "test/checkpoints").sealed:
        flip_a_bit(copy / "test/checkpoints" / str(tag) / "rank_00001.pt")
    for answer in run_distributed(outcome, 2, config_of(copy, corpus)):
        assert answer.startswith("CheckpointError: ")
        assert "no usable checkpoint is left" in answer
    assert steps(copy) == []


@pytest.mark.parametrize("trick", malicious_files(Path("unused")))
def test_a_malicious_pickle_in_a_sealed_checkpoint_does_nothing(
    trick: str, copy: Path, corpus: Path, tmp_path: Path
) -> None:
    """The attacker has also written the manifest, so that all digests are right."""
    newest, canary = newest_checkpoint(copy), tmp_path / "canary"
    name = "rank_00000.pt"
    content = malicious_files(canary)[trick]
    (newest / name).write_bytes(content)
    manifest = json.loads((newest / MANIFEST).read_text())
    manifest["files"][name] |= {"size": len(content), "sha256": sha256(content)}
    (newest / MANIFEST).write_text(json.dumps(manifest))
    assert run_distributed(outcome, 2, config_of(copy, corpus)) == ["finished"] * 2
    assert not canary.exists()
    assert newest.with_name(f"{newest.name}.quarantined").is_dir()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


REFUSE = {"checkpoint": {"every_steps": 3, "on_other_layout": "refuse"}}
REFUSED = {
    "other layout": ({"layout": Layout(data=2, zero=1), **REFUSE}, "tensor 2 -> 1, data 1 -> 2"),
    "other ZeRO stage": ({"layout": Layout(tensor=2, zero=0), **REFUSE}, "zero_stage 1 -> 0"),
    "other model": ({"model": {"hidden_size": 32}}, "(changed: model.hidden_size 16 -> 32"),
    "other data order": ({"data": {"shuffle": False}}, "(changed: data.shuffle True -> False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(case: str, copy: Path, corpus: Path) -> None:
    changes, reason = REFUSED[case]
    for answer in run_distributed(outcome, 2, config_of(copy, corpus, **changes)):
        assert answer.startswith("CheckpointError: ")
        assert reason in answer
    assert steps(copy) == [6, 3]


@pytest.mark.parametrize("number", [1, 3])
def test_a_checkpoint_of_another_version_is_left_alone(number: int, copy: Path, corpus: Path) -> None:
    newest = newest_checkpoint(copy)
    manifest = json.loads((newest / MANIFEST).read_text()) | {"format": number, "what": "is not known here"}
    (newest / MANIFEST).write_text(json.dumps(manifest))
    for answer in run_distributed(outcome, 2, config_of(copy, corpus)):
        assert f"format {number}, and this version of Surefoot has format 2" in answer
    assert steps(copy) == [6, 3]


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(corpus: Path, tmp_path: Path) -> None:
    """Two checkpoints of three fit; with keep_last = 1 the last one fits again once the first is gone."""
    twin = tmp_path / "twin"
    run_distributed(run_to_end, 2, config_of(twin, corpus))
    size = sum(path.stat().st_size for path in newest_checkpoint(twin).iterdir())
    with small_disk(tmp_path / "disk", int(2.5 * size)) as disk:
        answers = run_distributed(outcome, 2, config_of(disk, corpus))
        assert all("the last checkpoint could not be saved" in answer for answer in answers)
        assert steps(disk) == [6, 3]
        assert list((disk / "test/checkpoints").glob("step00000008*")) == []
        assert metrics(disk) == metrics(twin)


def test_a_second_run_in_the_folder_is_refused_by_all_ranks(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    with RunLock(tmp_path / "test"):
        for answer in run_distributed(outcome, 2, config_of(tmp_path, corpus)):
            assert "is in use by another run" in answer


def test_without_a_watchdog_latest_and_retention_go_by_age(corpus: Path, tmp_path: Path) -> None:
    kept = {"every_steps": 1, "keep_last": 2, "keep_every": 4}
    config = run_config(LAYOUT, tmp_path, corpus, checkpoint=kept, watchdog={"enabled": False})
    run_distributed(run_to_end, 2, config)
    assert steps(tmp_path) == [8, 7, 4]
    newest = newest_checkpoint(tmp_path)
    assert (newest.parent / "latest").read_text() == newest.name
