"""The commands that use models: nothing is imported that was not asked for, and errors end with their codes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.light import HEAVY
from support.mounts import with_mount

from data_pipeline.program import commands_in, package_of
from pretrain.commands import __main__ as program
from pretrain.commands.__main__ import ROOM, main

ROOT = Path(__file__).parents[3]
LINKED = "file:///proc/self/cwd/fi%6ce"
"""A URL of `file` in the current folder."""

OPTIONS = '''"""measure waves of 100 %"""
import argparse
def parser():
    parser = argparse.ArgumentParser(prog="surefoot waves")
    parser.add_argument("--height", type=int)
    return parser
'''
RUN = """import torch
from data_pipeline.errors import DataError
from pretrain.errors import CheckpointError
def run(options):
    if options.height == 1:
        raise DataError("no water\\x1b[2J at https://user:secret@host/x")
    if options.height == 2:
        raise CheckpointError("no waves")
    if options.height == 3:
        torch.empty(2**50, dtype=torch.uint8)
    if options.height == 4:
        bytes(2**50)
    if options.height == 5:
        torch.zeros(1) @ torch.zeros(2)
    if options.height == 6:
        open("/proc/self/no\x1b[2J")
    return 7
"""


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """It adds a command to those that there are."""
    monkeypatch.setattr("pretrain.commands.__path__", [str(tmp_path)])
    monkeypatch.setattr(program, "ROOM", tmp_path)

    def add(name: str, options: str, run: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "options.py").write_text(options)
        (tmp_path / name / "run.py").write_text(run)
        for module in ("", ".options", ".run"):
            full = f"pretrain.commands.{name}{module}"
            monkeypatch.setitem(
                sys.modules, full, sys
            )  # what is there in the end goes, what was before comes back
            del sys.modules[full]

    return add


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 7, ""),
        (["--height", "1"], 3, "no water\\x1b[2J at https://***@host/x"),
        (["--height", "2"], 4, "no waves"),
        (["--height", "6"], 4, "/proc/self/no\\x1b[2J: No such file or directory"),
    ],
)
def test_a_command_is_run(
    add: Callable[[str, str, str], None],
    words: list[str],
    code: int,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add("waves", OPTIONS, RUN)
    add("import_", "raise ImportError", "raise ImportError")
    assert main(["waves", *words]) == code
    assert capsys.readouterr().err == (f"surefoot waves: error: {told}\n" if told else "")


@pytest.mark.parametrize("height", ["3", "4"])
def test_lack_of_memory_is_no_fault_of_ours(
    add: Callable[[str, str, str], None], height: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As every model meets it that is too large; all other errors of torch are ours."""
    add("waves", OPTIONS, RUN)
    assert main(["waves", "--height", height]) == 4
    assert capsys.readouterr().err.startswith("surefoot waves: error: the memory does not suffice")
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        main(["waves", "--height", "5"])


@pytest.mark.parametrize(
    "words", [["waves", "--help"], ["waves", "--height", "x"], ["waves", "y"], ["boats"], []]
)
def test_help_and_mistakes_do_not_wait_for_it(
    add: Callable[[str, str, str], None], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    add("waves", OPTIONS, "raise ImportError")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == (0 if "--help" in words else 2)
    shown = capsys.readouterr()
    assert "--height" in shown.out if "--help" in words else "surefoot" in shown.err


def test_a_command_is_called_as_python_allows(add: Callable[[str, str, str], None]) -> None:
    add("import_", OPTIONS, "def run(options):\n    return 5\n")
    assert main(["import"]) == 5


def test_options_are_declared_without_heavy_libraries() -> None:
    """A library that cannot be imported shows it; our own rooms but the light ones are among them."""
    modules = [f"pretrain.commands.{package_of(name)}.options" for name in commands_in(ROOM, "options.py")]
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({(*HEAVY, 'transformers', 'safetensors')!r}))\n"
        f"from importlib import import_module\n"
        f"for name in {modules!r}: import_module(name).parser().format_help()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_paths_are_looked_at_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "run/checkpoints/x").mkdir(parents=True)
    (tmp_path / "run/config.toml").touch()
    (tmp_path / "file").touch()
    (tmp_path / "run/y").hardlink_to(tmp_path / "file")
    (tmp_path / "link").symlink_to("full")
    (tmp_path / "loop").symlink_to("loop")
    cases = {
        ("generate", "nope"): "nope: there is no such folder",
        ("evaluate", "nope@step00000001-a1"): "nope: there is no such folder",
        ("weights", "full/file"): "full/file: is a file",
        ("convert", "full", "--out", "full"): "--out full: is there already",
        ("evaluate", "full", "--alignments", "none/file"): "--alignments none/file: there is no folder none",
        ("evaluate", "full", "--alignments", "full"): "--alignments full: is no file, but a folder, a link",
        ("evaluate", "full", "--alignments", "pipe"): "--alignments pipe: is no file, but a folder, a link",
        ("evaluate", "full", "--alignments", "/dev/stdout"): "/dev/stdout: is no file, but a folder, a link",
        ("evaluate", "full", "--alignments", "/proc/self/x"): "/x: no file can be made in /proc/self; choose",
        (
            "evaluate",
            "run@x",
            "--alignments",
            "run/file",
        ): "--alignments run/file: lies in run, which the command",
        ("evaluate", "run/checkpoints/x", "--alignments", "run/y"): "run/y: lies in ",
        ("evaluate", "full", "--alignments", "run/y", "--data", "run"): "run/y: lies in run, which",
        ("evaluate", "full", "--alignments", "run/y", "--text", "file"): "run/y: is what the command reads",
        ("evaluate", "full", "--alignments", "new", "--source", "new"): "new: is what the command reads",
        ("evaluate", "full", "--alignments", "file", "--lm", "./run/../file"): "--alignments file: is what",
        ("evaluate", "full", "--alignments", "file", "--source", LINKED): "--alignments file: is what",
        (
            "forecast",
            "full",
            "file",
            "--out",
            "file",
        ): "--out file: is what the command reads; give another file",
        (
            "forecast",
            "full",
            "file",
            "--plot",
            "run/y",
        ): "--plot run/y: is what the command reads; give another",
        (
            "forecast",
            "full",
            "file",
            "--plot",
            "p",
            "--out",
            "p",
        ): "--plot p: is written by --out; give another",
        ("export", "full", "--to", "safetensors", "--out", "full"): "--out full: is there already",
        ("export", "full", "--to", "safetensors", "--out", "link"): "--out link: is there already",
        ("export", "full", "--to", "safetensors", "--out", "loop"): "--out loop: is there already",
    }
    program = (
        "import sys, json; from pretrain.commands.__main__ import main\n"
        "codes = [main(words) for words in json.loads(sys.argv[1])]\n"
        f"sys.exit(codes != [2] * {len(cases)} or bool({{*sys.modules}} & {{*{sorted(HEAVY)!r}}}))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, json.dumps([*cases])],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert [told in line for told, line in zip(cases.values(), answer.stderr.splitlines(), strict=True)] == [
        True
    ] * len(cases)


@pytest.mark.parametrize("through", ["place", "link"])
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_point_as_out_is_refused_before_the_work(kind: str, through: str, tmp_path: Path) -> None:
    """A volume of Docker is one. What is made there is a folder that appears at once, in the place of an empty one."""
    for name in ("run", "place", "volume"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("place")
    source = ["-t", "tmpfs", "none"] if kind == "tmpfs" else ["--bind", str(tmp_path / "volume")]
    words = ["export", str(tmp_path / "run"), "--to", "safetensors", "--out", str(tmp_path / through)]
    ended = with_mount(source, tmp_path / "place", ["-m", "pretrain.commands", *words])
    assert ended.returncode == 2, ended.stderr
    assert f"--out {tmp_path / through}: is where a file system is mounted" in ended.stderr
