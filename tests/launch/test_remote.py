"""Hosts are asked through a stand-in for pdsh: who answers is known, and who does not holds nobody up."""

import os
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

from launch.command import Command, LaunchOptions
from launch.outcome import IF_HEEDED, REQUESTS
from launch.process import Launch, forwarding
from launch.remote import on_hosts
from pretrain.runtime.stacks import REQUEST

OPTIONS = LaunchOptions(Path("run.toml"), slots={"me@a.org": (0,), "b": (0,)}, hostfile=Path("hosts"))
PORT = 2**16 + os.getpid()  # no launch has it
ANSWERS = """case "$4" in *launch.reap*) code=0;; *) code={code};; esac
echo "a: surefoot-answer a.org $code"
"""
SILENT = "echo 'b: ssh exited with exit code 255' >&2\nexit 255\n"
HANGING = "exec sleep 1000\n"
BOTH = 'echo "b: surefoot-answer b $code"\n'


def pretend(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """It has a script of the shell take the place of pdsh."""
    (folder / "pdsh").write_text(f"#!/bin/sh\n{script}")
    (folder / "pdsh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """It is a launch whose launcher waits for ever."""
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    command = Command(("sleep",), {}, PORT, 2)
    return Launch(command, OPTIONS, tmp_path, process, deque(), PORT)


@pytest.mark.parametrize(
    ("script", "codes", "silent"),
    [
        (ANSWERS + BOTH, {"a.org": 1, "b": 1}, ()),
        (ANSWERS + SILENT, {"a.org": 1}, ("b",)),
        (ANSWERS + HANGING, {"a.org": 1}, ("b",)),
        (HANGING, {}, ("a.org", "b")),
    ],
)
def test_who_answers_is_known(
    script: str,
    codes: dict[str, int],
    silent: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    pretend(monkeypatch, tmp_path, script.format(code=1) if "{code}" in script else script)
    answers = on_hosts(OPTIONS, "launch.ranks", ["1", "SIGTERM"], 1.0)
    assert (answers.codes, answers.silent) == (codes, silent)
    assert all(host in answers.problem for host in silent)
    assert bool(answers.problem)


def test_the_host_itself_says_what_came_of_it() -> None:
    """pdsh puts its own name for the host in the place of %h."""
    for module, words, code in (
        ("ranks", [str(PORT), "SIGTERM"], 1),
        ("reap", [str(PORT), "0", "nowhere"], 0),
    ):
        command = [sys.executable, "-m", f"launch.{module}", *words, "worker-0"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
        )
        assert (done.returncode, done.stdout) == (code, f"surefoot-answer worker-0 {code}\n")


def test_a_host_that_does_not_answer_is_told_and_the_others_are_asked_to_stop(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, tmp_path, ANSWERS.format(code=0) + SILENT)
    assert not launch.deliver(signal.SIGINT), "it is asked again"
    assert launch.stopping
    assert "no answer from b (b: ssh exited" in capsys.readouterr().err
    launch.kill()
    launch.finish(0.0)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_second_interrupt_ends_the_launcher_whatever_hosts_say(
    first: signal.Signals, launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It comes while pdsh hangs with the first one; a third one does not wait for answers to the second."""
    pretend(monkeypatch, tmp_path, f"kill -INT {os.getpid()}\n{HANGING}")
    with forwarding() as launch.pending:
        os.kill(os.getpid(), first)
        launch.wait()
        assert launch.killed
        assert "no answer from a.org, b" in launch.finish(600.0).problem
    assert launch.process.returncode == -signal.SIGKILL


def test_a_first_interrupt_before_there_are_ranks_ends_nothing(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, ANSWERS.format(code=1) + BOTH)
    assert not launch.deliver(signal.SIGINT)
    assert not launch.stopping
    launch.undelivered = signal.SIGINT
    assert launch.asked_to_stop
    assert not launch.insisted
    launch.pending.append(signal.SIGINT)
    assert launch.insisted
    launch.kill()
    launch.finish(0.0)


@pytest.mark.parametrize("number", [*IF_HEEDED, REQUEST])
def test_what_would_end_a_process_is_passed_on(number: signal.Signals) -> None:
    with forwarding() as pending:
        os.kill(os.getpid(), number)
        assert list(pending) == [number]
    assert (number in REQUESTS) is (number != REQUEST)
    previous = signal.signal(number, signal.SIG_IGN)
    try:
        with forwarding() as pending:
            os.kill(os.getpid(), number)
            assert list(pending) == ([] if number in IF_HEEDED else [number])
    finally:
        signal.signal(number, previous)


def test_asking_for_stacks_asks_for_no_end(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path, f"echo $4 > {tmp_path}/asked\n{ANSWERS.format(code=1)}{BOTH}")
    assert launch.deliver(REQUEST)
    assert "SIGUSR2" in (tmp_path / "asked").read_text()
    launch.undelivered = REQUEST
    assert not launch.asked_to_stop
    launch.kill()
    launch.finish(0.0)
