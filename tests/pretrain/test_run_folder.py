"""A run writes into its own folder and nowhere else, notices what is done to it meanwhile, and knows its own."""

import importlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.distributed import run_distributed
from support.runs import newest_checkpoint
from support.training import Layout
from support.watched import run as train_watched
from support.watched import story, watched

from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError
from pretrain.recovery.candidates import CheckpointManager
from pretrain.run_folder import LEDGER, METRICS
from pretrain.runtime.run_lock import RunLock

STEPS = 24


def configured(folder: Path, corpus: Path, **sections: Any) -> RunConfig:
    config = watched(Layout(), folder, corpus, memory_every_steps=100)
    changes = {
        "run": {**config.run.model_dump(), "steps": STEPS},
        "checkpoint": {"every_steps": 6, "keep_last": 10},
    }
    return RunConfig.model_validate({**config.model_dump(mode="json"), **changes, **sections})


def train(config: RunConfig, tag: str | None = None) -> str:
    try:
        return train_watched(config, tag=tag)
    except ConfigurationError as error:
        return f"code {error.exit_code}: {error}"


def train_and(config: RunConfig, deed: Callable[[Path], None], step: int) -> tuple[str, str]:
    """Train, and have something happen to the run folder as a checkpoint of a step is due."""
    due = CheckpointManager.look_after

    def look_after(manager: CheckpointManager, state: Any) -> None:
        if state.step == step:
            deed(config.run_folder)
        due(manager, state)

    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointManager, "look_after", look_after)
        patch.setattr("builtins.print", lambda *words, **options: said.append(" ".join(map(str, words))))
        return train(config), "\n".join(said)


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


# Links


def plant(run: Path, name: str, target: Path) -> None:
    run.mkdir(parents=True)
    (run / name).symlink_to(target)


@pytest.mark.parametrize("name", ["config.toml", METRICS, LEDGER, "run.lock", "supervisor.jsonl"])
@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_is_a_link_is_not_written_through(
    name: str, there: bool, corpus: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    if there:
        victim.write_text("precious")
    plant(tmp_path / "runs" / "test", name, victim)
    (end,) = run_distributed(train, 1, configured(tmp_path / "runs", corpus))
    assert end.startswith("code 2: ")
    assert f"{name}: is a link" in end
    assert victim.read_text() == "precious" if there else not victim.exists()


@pytest.mark.timeout(60)
def test_a_pipe_holds_nobody_up(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    os.mkfifo(tmp_path / "test" / LEDGER)
    (end,) = run_distributed(train, 1, configured(tmp_path, corpus))
    assert f"{LEDGER}: is no regular file" in end


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "heartbeats", "stacks", "evidence"])
def test_a_folder_that_leads_to_other_things_is_not_written_to(
    name: str, corpus: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    for held in ("latest.txt", "rank_00000.json", "rank_00000.txt"):
        (victim / held).write_text("precious")
    plant(tmp_path / "runs" / "test", name, victim)
    before = tree(victim)
    (end,) = run_distributed(train, 1, configured(tmp_path / "runs", corpus))
    assert end.startswith("code 2: ")
    assert f"{name}: is a link" in end
    assert tree(victim) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a link away needs root")
def test_a_link_that_another_user_made_is_not_followed(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    plant(tmp_path / "runs" / "test", "checkpoints", tmp_path / "victim")
    os.lchown(tmp_path / "runs" / "test" / "checkpoints", 12345, -1)
    (end,) = run_distributed(train, 1, configured(tmp_path / "runs", corpus))
    assert "is a link that another user made (id 12345)" in end
    assert not list((tmp_path / "victim").iterdir())


def test_links_to_a_big_disk_work(corpus: Path, tmp_path: Path) -> None:
    """The folder of all runs, that of checkpoints and that of curves; also when the run goes on."""
    for name in ("disk", "big", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "runs").symlink_to("disk")
    plant(tmp_path / "runs" / "test", "checkpoints", tmp_path / "big")
    (tmp_path / "runs" / "test" / "tensorboard").symlink_to(tmp_path / "logs")
    config = configured(tmp_path / "runs", corpus, journal={"console": "none", "tensorboard": True})
    assert run_distributed(train, 1, config) == ["finished"]
    longer = RunConfig.model_validate(
        {**config.model_dump(mode="json"), "run": {**config.run.model_dump(), "steps": 30}}
    )
    assert run_distributed(train, 1, longer) == ["finished"]
    assert (tmp_path / "big" / newest_checkpoint(tmp_path / "runs").name).is_dir()
    assert list((tmp_path / "logs").glob("events*"))


def test_two_runs_do_not_share_a_folder_of_checkpoints(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    plant(tmp_path / "runs" / "test", "checkpoints", tmp_path / "big")
    with RunLock(tmp_path / "big"):  # as the other run holds it
        (end,) = run_distributed(train, 1, configured(tmp_path / "runs", corpus))
    assert end.startswith("code 2: ")
    assert "checkpoints is in use by another run (process " in end
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["run.lock"]


def test_what_a_killed_writer_left_is_removed(corpus: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, corpus)
    assert run_distributed(train, 1, config) == ["finished"]
    token = "0123456789abcdef"
    left = [
        tmp_path / "test" / f".config.toml.{token}.tmp",
        newest_checkpoint(tmp_path) / f".CERTIFICATE.json.{token}.tmp",
        tmp_path / "test" / "checkpoints" / f".latest.{token}.tmp",
        tmp_path / "test" / "heartbeats" / f".rank_00000.json.{token}.tmp",
        tmp_path / "test" / "evidence" / f".attempt00000001.{token}.tmp" / "verdict.json",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    assert run_distributed(train, 1, config) == ["finished"]
    assert not [path for path in (tmp_path / "test").rglob("*.tmp")]


# What moves under a run


def move(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def move_and_make_another(run: Path) -> None:
    move(run)
    shutil.copytree(run.with_name("elsewhere"), run)


def remove_lock(run: Path) -> None:
    (run / "run.lock").unlink()


@pytest.mark.parametrize("deed", [move, move_and_make_another, shutil.rmtree, remove_lock])
def test_a_run_whose_folder_moves_ends_with_code_2_and_writes_nothing_there(
    deed: Callable[[Path], None], corpus: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path, corpus, journal={"console": "none", "tensorboard": True})
    ((end, _),) = run_distributed(train_and, 1, config, deed, 7)
    assert end.startswith(f"code 2: {tmp_path}/test was moved, removed or replaced, or its run.lock was")
    if deed in (move, shutil.rmtree):
        assert not (tmp_path / "test").exists()
    if deed is move:
        (tmp_path / "elsewhere").rename(tmp_path / "test")
        assert run_distributed(train, 1, config) == ["finished"]
    if deed is move_and_make_another:
        rows = [
            (path / METRICS).read_text().count("\n") for path in (tmp_path / "test", tmp_path / "elsewhere")
        ]
        assert rows[0] < rows[1], "what came after went with the folder that moved"
        assert not list((tmp_path / "test" / "checkpoints").glob("*/MANIFEST.json"))


@dataclass(frozen=True)
class Lead:
    """It puts a link to a folder of other things in place of a folder of a run; it can be sent to a rank."""

    name: str
    victim: Path

    def __call__(self, run: Path) -> None:
        if (run / self.name).exists():
            (run / self.name).rename(run / "before")
        (run / self.name).symlink_to(self.victim)


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "heartbeats"])
def test_a_folder_that_is_made_to_lead_to_other_things_is_not_written_to(
    name: str, corpus: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "rank_00000.json").write_text("precious")
    (victim / "events.old").write_text("precious")
    before = tree(victim)
    config = configured(tmp_path / "runs", corpus, journal={"console": "none", "tensorboard": True})
    ((end, _),) = run_distributed(train_and, 1, config, Lead(name, victim), 7)
    assert tree(victim) == before
    if name == "checkpoints":
        assert end.startswith("code 2: ")
        assert "checkpoints: is a link to a folder that holds other things" in end
    else:
        assert end == "finished"


def test_checkpoints_that_are_removed_cost_themselves_alone(corpus: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, corpus)
    ((end, _),) = run_distributed(train_and, 1, config, Remove("checkpoints"), 15)
    assert end == "finished"
    assert newest_checkpoint(tmp_path).name.startswith(f"step{STEPS:08d}")


@dataclass(frozen=True)
class Remove:
    """It removes a file or a folder of a run; it can be sent to a rank."""

    name: str

    def __call__(self, run: Path) -> None:
        path = run / self.name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


class Replace(Remove):
    def __call__(self, run: Path) -> None:
        (run / "other").write_text("{}\n")
        (run / "other").rename(run / self.name)


class Cut(Remove):
    def __call__(self, run: Path) -> None:
        with (run / self.name).open("rb+") as file:
            file.truncate(100)


class AddTo(Remove):
    def __call__(self, run: Path) -> None:
        with (run / self.name).open("a") as file:
            file.write('{"step": 3}\n{"torn')


@pytest.mark.parametrize("deed", [Remove, Replace, Cut, AddTo])
def test_a_ledger_that_is_lost_is_written_anew(deed: type[Remove], corpus: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin"
    run_distributed(train, 1, configured(twin, corpus))
    ((end, said),) = run_distributed(train_and, 1, configured(tmp_path, corpus), deed(LEDGER), 10)
    assert end == "finished"
    assert f"{LEDGER} was" in said
    assert "was written anew from memory" in said
    assert [record.kind for record in story(tmp_path)] == [record.kind for record in story(twin)]


@pytest.mark.parametrize("deed", [Remove, Replace, Cut, AddTo])
def test_metrics_that_are_lost_go_on(deed: type[Remove], corpus: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, corpus, journal={"console": "plain", "tensorboard": False})
    ((end, _),) = run_distributed(train_and, 1, config, deed(METRICS), 10)
    assert end == "finished"
    rows = [json.loads(line) for line in (tmp_path / "test" / METRICS).read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps[-14 if deed is Cut else 0 :] == list(range(11 if deed is Cut else 1, STEPS + 1))
    assert all("step" in row for row in rows)


def test_curves_that_are_removed_go_on_in_a_new_file(corpus: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, corpus, journal={"console": "none", "tensorboard": True})
    ((end, _),) = run_distributed(train_and, 1, config, Remove("tensorboard"), 10)
    assert end == "finished"
    assert list((tmp_path / "test" / "tensorboard").glob("events*"))


# Whose checkpoint it is


def test_a_checkpoint_of_another_run_is_taken_only_on_demand(corpus: Path, tmp_path: Path) -> None:
    mine, other = configured(tmp_path / "mine", corpus), configured(tmp_path / "other", corpus)
    assert run_distributed(train, 1, mine) == run_distributed(train, 1, other) == ["finished"]
    tag = f"step{STEPS:08d}-a99"
    copied = tmp_path / "mine" / "test" / "checkpoints" / tag
    shutil.copytree(newest_checkpoint(tmp_path / "other"), copied)
    manifest = json.loads((copied / "MANIFEST.json").read_text())
    (copied / "CERTIFICATE.json").unlink()
    (copied / "MANIFEST.json").write_text(json.dumps({**manifest, "tag": tag}))

    assert run_distributed(train, 1, mine) == ["finished"]
    assert story(tmp_path / "mine")[-2].fields["tag"].startswith(f"step{STEPS:08d}")
    assert not copied.exists()
    assert copied.with_name(f"{tag}.other-run").is_dir()

    assert run_distributed(train, 1, mine, tag) == ["finished"]
    resumed = [record for record in story(tmp_path / "mine") if str(record.kind) == "resumed"][-1]
    assert resumed.fields["tag"] == tag
    assert run_distributed(train, 1, mine) == ["finished"], "it is the run's own from then on"
    assert copied.is_dir()


def test_checkpoints_without_their_ledger_are_not_taken_for_the_runs_own(
    corpus: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path, corpus)
    assert run_distributed(train, 1, config) == ["finished"]
    tag = newest_checkpoint(tmp_path).name
    (tmp_path / "test" / LEDGER).unlink()
    (end,) = run_distributed(train, 1, config)
    assert f"{tag} belongs to a run that the ledger here knows nothing of; --resume {tag}" in end
    assert run_distributed(train, 1, config, tag) == ["finished"]


# Sharing


@pytest.fixture
def shared(corpus: Path) -> Iterator[Path]:
    """A folder that other users see, with the data in it: pytest's own folders are closed to them."""
    if os.geteuid() != 0:
        pytest.skip("other users need root")
    home = Path("/tmp") / f"surefoot-shared-{os.getpid()}"
    shutil.copytree(corpus, home / "data")
    for path in (home, *home.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield home
    shutil.rmtree(home)


def train_as(config: RunConfig, user: int, group: int) -> str:
    """Train with the rights of another user; the process gets its own back."""
    for folder in Path(tempfile.gettempdir()).glob("ranks-*"):  # where the rig's ranks meet
        for path in (folder, *folder.iterdir()):
            path.chmod(0o777)
    importlib.import_module("torch._dynamo")  # as optimizers do; that user may not read where Python lies
    before = os.umask(0o002)
    os.setegid(group)
    os.seteuid(user)
    try:
        return train(config)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.umask(before)


def test_a_colleague_of_the_group_goes_on(shared: Path) -> None:
    """A folder of the group, umask 002: a second user resumes what a first one has begun."""
    os.chown(shared, 0, 4242)
    shared.chmod(0o2775)
    for user, steps in ((4001, 12), (4002, 24)):
        section = {"name": "test", "folder": str(shared / "runs"), "steps": steps}
        config = configured(shared / "runs", shared / "data", run=section)
        assert run_distributed(train_as, 1, config, user, 4242) == ["finished"]
    for path in (shared / "runs").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o060 == 0o060, f"{path}: {mode:o}"
        assert path.stat().st_gid == 4242


def test_a_folder_that_cannot_be_written_to_is_told_by_its_key(shared: Path) -> None:
    (shared / "runs" / "test").mkdir(parents=True)
    for folder in (shared / "runs", shared / "none"):
        (end,) = run_distributed(train_as, 1, configured(folder, shared / "data"), 4001, 4001)
        assert end.startswith("code 2: ")
        assert "run.folder" in end
        assert "Permission denied" in end
