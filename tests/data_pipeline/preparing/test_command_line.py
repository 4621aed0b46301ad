"""The rooms that can prepare data are found by their files, and only the one that is asked for is imported."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import data_pipeline.__main__ as command
from data_pipeline.errors import DataError
from data_pipeline.preparing.command_line import (
    at_least,
    exit_code,
    positive,
    processes,
    report_left_out,
    share,
)
from data_pipeline.preparing.source_files import LeftOut
from data_pipeline.preparing.workspace import TargetExists

REPOSITORY = Path(__file__).parents[3]
LIBRARIES = ("torch", "numpy", "sentencepiece", "webdataset")


def test_what_can_be_prepared() -> None:
    found = command.rooms()
    assert found["text"] == "text for next-token prediction"
    assert set(found) == {path.parent.name for path in (REPOSITORY / "data_pipeline").glob("*/command.py")}
    assert all(found.values()), "each says what it is"


def test_a_room_with_a_command_is_found_without_a_registry(tmp_path: Path) -> None:
    for room in ("waves", "images", "shards"):
        (tmp_path / room).mkdir()
    (tmp_path / "waves" / "command.py").write_text('"""waves of 100 %\n\nMore."""\nraise ImportError\n')
    (tmp_path / "images" / "command.py").write_text("raise ImportError\n")
    assert command.rooms(tmp_path) == {"images": "", "waves": "waves of 100 %"}


def test_a_found_room_gets_the_rest_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "waves").mkdir()
    source = '"""waves of 100 %"""\ndef main(arguments):\n    print(arguments)\n    return 7\n'
    (tmp_path / "waves" / "command.py").write_text(source)
    monkeypatch.setattr("data_pipeline.__path__", [str(tmp_path)])
    monkeypatch.setattr(command, "rooms", lambda found=command.rooms: found(tmp_path))
    assert command.main(["waves", "--help", "--", "x"]) == 7
    assert capsys.readouterr().out == "['--help', '--', 'x']\n"
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert "waves of 100 %" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["vision"], ["--out", "x"]])
def test_what_is_no_kind_of_data_is_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    if arguments == ["vision"]:
        assert f"(choose from {', '.join(map(repr, command.rooms()))})" in capsys.readouterr().err


def test_help_imports_no_room() -> None:
    """A library that cannot be imported shows it."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({LIBRARIES})); "
    program = blocked + "from data_pipeline.__main__ import main; main(['--help'])"
    environment = {**os.environ, "COLUMNS": "80"}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    told = [line.split(maxsplit=1) for line in ended.stdout.splitlines()]
    assert ["text", "text for next-token prediction"] in told


def raising(error: BaseException) -> Callable[[], None]:
    def prepare() -> None:
        raise error

    return prepare


@pytest.mark.parametrize(
    ("error", "code"), [(TargetExists("there"), 2), (DataError("bad"), 3), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(raising(error)) == code
    told = str(error) or "interrupted; nothing was written"
    assert capsys.readouterr().err == f"surefoot prepare: error: {told}\n"
    assert exit_code(lambda: None) == 0


def test_a_report_that_finds_no_room_is_told() -> None:
    program = (
        "import os; from data_pipeline.preparing.command_line import exit_code\n"
        "os._exit(exit_code(lambda: print('done', flush=True)))"
    )
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 3
    assert ended.stderr == "surefoot prepare: error: standard output: No space left on device\n"


def test_much_that_was_left_out_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    many = [LeftOut(f"file {number}", "hidden") for number in range(1022)]
    report_left_out([*many, LeftOut("a\x1b[2Jb\udce9", "not UTF-8")])
    assert capsys.readouterr().err.splitlines() == [
        "left out: file 0, file 1, file 2, file 3, file 4 and 1,017 more: hidden",
        "left out: a\\x1b[2Jb\\udce9: not UTF-8",
    ]


def test_types_of_arguments() -> None:
    assert positive("3") == 3
    assert share("0") == 0
    assert at_least(1)("1") == 1
    for read, text in (
        (positive, "0"),
        (processes, "0"),
        (processes, "99999999999999"),
        (share, "1"),
        (share, "-0.1"),
        (at_least(1), "0.9"),
        (at_least(1), "nan"),
        (at_least(1), "inf"),
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)
