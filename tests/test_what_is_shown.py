"""Names, reasons and samples of somebody hostile reach people as they are, and neither their terminal nor browser."""

import io
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import rich.console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html

from data_pipeline.parsing import parse_json
from launch.inspect import inspect
from pretrain.config.run import JournalConfig
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.record import Kind, Record
from pretrain.metrics.console import BarConsole
from pretrain.metrics.logger import FileLogger
from pretrain.recovery.crash_report import _lines

HOSTILE = "a\x1b[2J\x1b]0;owned\x07\u202egnp\u2066\u200b\x9b31m\r\nnot a line [bold]b[/] ![x](http://h/i.png) <b>\udce9"
SHOWN = (
    "a\\x1b[2J\\x1b]0;owned\\x07\\u202egnp\\u2066\\u200b\\x9b31m\\r\\nnot a line [bold]b[/] "
    "![x](http://h/i.png) <b>\\udce9"
)
ROOT = Path(__file__).parents[1]


def command(*words: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """It runs `python -m ...` where nothing but ASCII can be printed."""
    asked = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C.UTF-8", **environment}
    line = [os.fsencode(word) for word in (sys.executable, "-m", *words)]
    return subprocess.run(line, cwd=folder, env={**os.environ, **asked}, capture_output=True, timeout=120)


def in_ascii(text: str) -> bytes:
    return text.encode("ascii", "backslashreplace")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with closing(LedgerFile(tmp_path / "ledger.jsonl")) as ledger:
        for kind, fields in {
            Kind.RUN_START: {"host": HOSTILE, "layout": HOSTILE},
            Kind.SEALED: {"tag": HOSTILE[:60]},
            Kind.LEFT_ALONE: {"reason": HOSTILE},
            Kind.STOPPED: {"code": 5, "reason": HOSTILE},
        }.items():
            ledger.append(Record(kind, 1, 1, 1, fields))
    return tmp_path


@pytest.mark.parametrize("terminal", [False, True])
def test_inspect_shows_a_hostile_ledger(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "400")
    assert inspect(run, False) == 0
    told = capsys.readouterr().out
    assert f"run started on {SHOWN}" in told
    assert f"stopped with code 5: {SHOWN}" in told
    assert not {"\x07", "\u202e", "\u200b", "\x9b", "\r"} & set(told)


def test_inspect_gives_scripts_plain_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(run, True) == 0
    told = capsys.readouterr().out
    assert told.isascii()
    # What was no text in UTF-8 is spelled out already in the ledger.
    assert json.loads(told)["ending"]["reason"] == HOSTILE.replace("\udce9", "\\udce9")


def test_events_steer_neither_terminal_nor_browser(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = FileLogger(
        tmp_path,
        JournalConfig(console="plain"),
        total_steps=5,
        first_step=1,
        undone=0,
        lineage=1,
        flops_per_token=1.0,
        world_size=1,
        device_name="",
        metrics=(),
        targets="tokens",
    )
    with logger:
        logger.event(1, f"damaged sample masked: {HOSTILE} of https://me:secret@host/x?sig=secret")
    assert capsys.readouterr().out == (
        f"step 1: damaged sample masked: {SHOWN} of https://***@host/x?sig=***\n"
    )
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (name,) = [tag for tag in events.Tags()["tensors"] if "events" in tag]
    html = markdown_to_safe_html(events.Tensors(name)[0].tensor_proto.string_val[0])
    assert "<img" not in html
    assert "<strong" not in html
    assert "<pre><code>" in html
    assert "![x](http://h/i.png)" in html


def test_a_progress_bar_takes_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console = BarConsole(
        5, rich.console.Console(file=(file := io.StringIO()), force_terminal=True, width=300)
    )
    console.say("step 1: [bold]b[/] [/] [link=http://h]x[/link] \\")
    console.close()
    assert "[bold]b[/] [/] [link=http://h]x[/link] \\" in file.getvalue()


def test_samples_of_a_crash_report_can_be_looked_at() -> None:
    rows: list[dict[str, Any]] = [{"text": HOSTILE + "größe 数据 🐾", HOSTILE: 1.0}]
    text = _lines(rows)
    assert text[:-1].isprintable()
    assert "größe 数据 🐾" in text
    assert parse_json(text)["text"] == HOSTILE.replace("\udce9", "\\udce9") + "größe 数据 🐾"


@pytest.mark.parametrize("kind", [("text",), ("translation", "--pairs")], ids=["text", "translation"])
def test_prepare_tells_hostile_names(tmp_path: Path, kind: tuple[str, ...]) -> None:
    done = command("data_pipeline", *kind, HOSTILE, "https://me:secret@h/x", "--out", "out", folder=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith(b"surefoot prepare: error: a\\x1b[2J\\x1b]0;owned\\x07\\u202egnp")
    assert b"\x1b" not in done.stderr
    assert b"secret" not in done.stderr


@pytest.mark.parametrize(
    "command", ["check", "train", "inspect", "doctor --folder", "prepare text x --out", "check a"]
)
@pytest.mark.parametrize("secret", ["secret", "sec ret"])
def test_refused_words_of_a_command_line_keep_secrets(tmp_path: Path, command: str, secret: str) -> None:
    script = "import sys; from launch.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", script, *command.split(), f"https://me:{secret}@h/x\x1b[2J"]
    asked = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, **asked}, capture_output=True, timeout=120)
    assert done.returncode == 2
    assert b"https://***@h/x\\x1b[2J" in done.stderr
    assert b"ret" not in done.stderr.rpartition(b"error:")[2]
    assert b"\x1b" not in done.stderr


def test_scripts_are_told_no_secret(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("")
    script = "import sys; from launch.cli import main; sys.exit(main())"
    override = 'run.folder="https://me:secret@h"'
    words = [sys.executable, "-c", script, "check", "a.toml", "--json", "--set", override]
    asked = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, **asked}, capture_output=True, timeout=120)
    assert done.returncode == 2
    assert "https://***@h is a URL" in str(json.loads(done.stdout)["faults"])
    assert b"secret" not in done.stdout


def test_check_tells_hostile_keys_and_values(tmp_path: Path) -> None:
    name = "r\u00e9\u202e\U0001f43e.toml"
    key = json.dumps(HOSTILE[:-1], ensure_ascii=True)
    (tmp_path / name).write_text(f'[run]\nname = "x\\u001b[2J"\n{key} = 1\n', encoding="utf-8")
    script = "import sys; from launch.cli import main; sys.exit(main())"
    words = [
        sys.executable,
        "-c",
        script,
        "check",
        name,
        "--set",
        "data.sources=https://me:secret@h/x?sig=secret",
    ]
    asked = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, **asked}, capture_output=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(b"surefoot: r\\xe9\\u202e\\U0001f43e.toml: ")
    assert not {b"\x1b", b"\x07"} & {done.stderr[place : place + 1] for place in range(len(done.stderr))}
    assert b"secret" not in done.stderr
    assert b"unknown key" in done.stderr
    assert not any(line.startswith(b"not a line") for line in done.stderr.splitlines())
