import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.config.run import JournalConfig
from pretrain.metrics.console import (
    BarConsole,
    NoConsole,
    PlainConsole,
    StepLine,
    TimeLeft,
    chosen_console,
    open_console,
)


def line(step: int, remark: str = "") -> StepLine:
    return StepLine(
        step, loss=3.25, learning_rate=3e-4, gradient_norm=0.5, tokens_per_second=12345.6, remark=remark
    )


def test_time_left_follows_recent_steps() -> None:
    times: Iterator[float] = iter([0.0, 2.0, 4.0])
    time_left = TimeLeft(total_steps=100, clock=lambda: next(times))
    assert [time_left.after(step) for step in (1, 2, 3)] == ["-:--:--", "0:03:16", "0:03:14"]


def test_time_left_forgets_the_slow_start() -> None:
    times = iter([0.0, 1000.0, *(1000.0 + n for n in range(1, 200))])
    time_left = TimeLeft(total_steps=300, clock=lambda: next(times))
    assert [time_left.after(step) for step in range(1, 201)][-1] == "0:01:40"


def test_time_left_counts_the_steps_that_a_rollback_takes_again() -> None:
    """Of 100 steps of two seconds, the 50th goes back to step 9: as many are left as after it the first time."""
    times = iter(2.0 * number for number in range(200))
    time_left = TimeLeft(total_steps=100, clock=lambda: next(times))
    told = [time_left.after(step) for step in (*range(1, 51), 10, 11)]
    assert told[9] == told[50] == "0:03:00"
    assert told[51] == "0:02:58"


def test_time_left_of_a_run_that_is_ended_by_hand() -> None:
    time_left = TimeLeft(total_steps=2**53, clock=iter([0.0, 3600.0]).__next__)
    assert [time_left.after(step) for step in (1, 2)] == ["-:--:--", "115740 days, 17:46:40"]


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole(total_steps=25, every_steps=10)
    for step in range(3, 26):
        console.step(line(step, remark="veto: loss is not finite" if step == 7 else ""))
    console.say("step 25: checkpoint saved")
    lines = capsys.readouterr().out.splitlines()
    assert [text.split("/")[0] for text in lines[:-1]] == [
        "step  3",
        "step  7",
        "step 10",
        "step 20",
        "step 25",
    ]
    facts = (
        "step  3/25  loss 3.2500  learning rate 3.00e-04  gradient norm 0.500  12,346 tokens/s  -:--:-- left"
    )
    assert lines[0] == facts
    assert lines[1].endswith("left  veto: loss is not finite")
    assert lines[-1] == "step 25: checkpoint saved"


def test_plain_is_for_pipes_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(chosen_console(JournalConfig(), total_steps=1), PlainConsole)


def test_forced_bar_and_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(chosen_console(JournalConfig(console="none"), total_steps=1), NoConsole)
    bar = chosen_console(JournalConfig(console="bar"), total_steps=1)
    assert isinstance(bar, BarConsole)
    bar.close()


RUN = """
from pretrain.config.run import JournalConfig
from pretrain.metrics.console import StepLine, open_console
console = open_console(JournalConfig(), total_steps=200)
console.say("[bold]7 %[/bold] of a message that is shown as it is")
for step in (1, 120, 200):
    console.step(StepLine(step, loss=3.25, learning_rate=3e-4, gradient_norm=0.5, tokens_per_second=12345.6))
    print("a library prints", step)
console.close()
"""


def run_on_terminal(source: str, **environment: str) -> str:
    """What a program writes to a terminal of 120 columns."""
    main, side = pty.openpty()
    settings = {**os.environ, "TERM": "xterm", "COLUMNS": "120", **environment}
    process = subprocess.Popen([sys.executable, "-c", source], stdout=side, stderr=side, env=settings)
    os.close(side)
    output = b"".join(iter(lambda: read(main), b""))
    os.close(main)
    assert process.wait() == 0, output.decode()
    return output.decode()


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # how Linux says that the other side is closed
        return b""


def test_bar_on_a_terminal() -> None:
    output = run_on_terminal(RUN)
    assert "step 200/200" in output
    assert "loss 3.2500" in output
    assert "12,346 tokens/s" in output
    assert "left" in output
    assert "[bold]7 %[/bold] of a message" in output
    assert "a library prints 120" in output
    assert "\x1b[?25l" in output, "the cursor is hidden while the bar stands"
    assert output.rstrip().endswith("\x1b[?25h"), "and shown again"


def test_no_bar_on_a_terminal_that_cannot_move_the_cursor() -> None:
    output = run_on_terminal(RUN, TERM="dumb")
    assert "\x1b" not in output
    assert "step 200/200  loss 3.2500" in output


def test_console_of_a_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", RUN], stdout=log, check=True)
    assert "\x1b" not in (tmp_path / "log").read_text()
    assert "step 200/200  loss 3.2500" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "failure", [BrokenPipeError(32, "gone"), OSError(5, "no terminal"), OSError(28, "full")]
)
def test_a_console_that_nobody_reads_falls_silent(failure: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            raise failure

    closed = Closed()
    monkeypatch.setattr(sys, "stdout", closed)
    console = open_console(JournalConfig(console="plain"), total_steps=9)
    for step in range(1, 10):
        console.step(line(step))
        console.say("checkpoint saved")
    console.close()
    assert closed.writes == 1
