"""What becomes of a file of settings after `surefoot train` has read it changes no run that it has started."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from launch import subcommands
from launch.cli import main
from launch.command import Command
from launch.supervise import Supervisor
from pretrain.__main__ import parse
from pretrain.config.as_read import AsRead, load_as_read
from pretrain.config.loader import load_config, read_settings
from pretrain.errors import ConfigurationError

DEMO = Path(__file__).parents[3] / "configs" / "gpt" / "demo.toml"
SET = ("run.name=a.b",)
LATER = 10**18


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """It is a file of settings that nothing else uses."""
    (tmp_path / "run.toml").write_bytes(DEMO.read_bytes())
    return tmp_path / "run.toml"


def read_here(path: Path, copy: Path | None = None) -> AsRead:
    """It reads settings as `surefoot train` does, and hands over what ranks are told."""
    return AsRead.parse(str(AsRead.of(read_settings(path, SET)[0], copy)))


def edit(path: Path, old: str, new: str) -> None:
    """It edits a file, which must have the words."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def seed_line() -> str:
    """It returns the line of the demo that has the seed."""
    (line,) = re.findall(r"^seed = .*$", DEMO.read_text(), re.MULTILINE)
    return str(line)


def test_what_is_as_it_was_read_is_trained_with(path: Path) -> None:
    read = read_here(path)
    path.write_text(f"# a remark\n{path.read_text()}")
    config, told = load_as_read(path, SET, read)
    assert (config, told) == (load_config(path, SET), "")
    assert load_as_read(path, (), None)[0] == load_config(path)


@pytest.mark.parametrize("broken", [False, True])
def test_an_edited_file_is_refused(broken: bool, path: Path) -> None:
    read = read_here(path)
    edit(path, seed_line(), "seed = = 5" if broken else "seed = 5")
    with pytest.raises(
        ConfigurationError, match=r"run.toml: the file has changed since .* a file of its own"
    ):
        load_as_read(path, SET, read)


def test_other_settings_on_the_command_line_are_refused(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="has changed"):
        load_as_read(path, ("run.name=b",), read_here(path))


def test_variables_may_mean_something_else_where_the_ranks_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedulers give each job a TMPDIR of its own."""
    monkeypatch.setenv("TMPDIR", "/tmp/login")
    edit(path, "[data]", '[data]\ncache = "$TMPDIR/cache"')
    read = read_here(path)
    monkeypatch.setenv("TMPDIR", "/tmp/job")
    assert load_as_read(path, SET, read)[0].data.cache == Path("/tmp/job/cache")


def test_other_hosts_may_have_data_elsewhere(path: Path) -> None:
    read = replace(read_here(path), host="elsewhere", time=os.stat(path).st_ctime_ns + LATER)
    edit(path, "[data]", '[data]\ncache = "/mine"')
    assert load_as_read(path, SET, read)[0].data.cache == Path("/mine")
    with pytest.raises(ConfigurationError, match="on elsewhere"):  # edited since
        load_as_read(path, SET, replace(read, time=0))
    edit(path, seed_line(), "seed = 5")
    with pytest.raises(ConfigurationError, match="on elsewhere"):
        load_as_read(path, SET, read)


class Recorded(Supervisor):
    """It makes two launches and edits the file in between."""

    commands: list[Command]

    def run(self) -> int:
        self._folder.mkdir(parents=True)
        type(self).commands = [self._build()]
        self._options.config.write_text("broken")
        type(self).commands.append(self._build())
        return 0


def test_relaunches_have_what_the_supervisor_was_started_with(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subcommands, "Supervisor", Recorded)
    started = load_config(path, ("run.seed=77", "run.folder=my $$runs"))
    given = ["--set", "run.seed=77", "--set", "run.folder=my $$runs"]
    assert main(["train", "run.toml", "--supervise", "--num-accelerators", "2", *given]) == 0
    for command in Recorded.commands:
        words = command.argv[command.argv.index("pretrain") + 1 :]
        options = parse(words)
        config, told = load_as_read(options.config, options.overrides, options.as_read)
        assert config == started
        assert "the run goes on with the settings that its supervisor was started with" in told
    (tmp_path / "my $runs" / "demo" / "supervised.toml").write_text("")
    with pytest.raises(ConfigurationError, match="has changed"):
        load_as_read(options.config, options.overrides, options.as_read)
