"""Programs of several commands find them by their files, and end as other tools do."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.program import UNWRITTEN, command_parser, commands_in, package_of, run_program, unwritten

ROOT = Path(__file__).parents[2]


def test_commands_are_found_by_their_files(tmp_path: Path) -> None:
    for room, text in {"waves": '"""waves of 100 %\n\nMore."""\nraise ImportError\n', "import_": ""}.items():
        (tmp_path / room).mkdir()
        (tmp_path / room / "options.py").write_text(text)
    (tmp_path / "helpers").mkdir()
    assert commands_in(tmp_path, "options.py") == {"import": "", "waves": "waves of 100 %"}
    assert [package_of(name) for name in ("import", "waves")] == ["import_", "waves"]


def test_a_parser_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_parser("surefoot", "Use.", "exit codes: 0", {"waves": "waves of 100 %"}, "COMMAND")
    assert parser.parse_args(["waves"]).command == "waves"
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "waves of 100 %" in capsys.readouterr().out


def run(body: str, **options: object) -> subprocess.CompletedProcess[str]:
    """It runs a program in a process of its own, as `surefoot` starts it: Ctrl-C waits until it can be dealt with."""
    program = (
        "import os, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
        "from data_pipeline.program import run_program\n"
        f"def main():\n    {body}\n    return 7\n"
        "sys.exit(run_program('surefoot waves', main))"
    )
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, check=False, **streams)  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_it_without_a_traceback(number: signal.Signals) -> None:
    done = run(f"os.kill(os.getpid(), {int(number)})")
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


def test_its_exit_code_is_that_of_main() -> None:
    done = run("print('a\\ud800b')")
    assert (done.returncode, done.stdout) == (7, "a\\ud800b\n")


def test_nobody_reads() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run("print('x')", stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_no_room_for_what_it_says() -> None:
    with Path("/dev/full").open("w") as full:
        done = run("print('x')", stdout=full)
    assert (done.returncode, done.stderr) == (
        UNWRITTEN,
        "surefoot waves: error: cannot write: No space left on device\n",
    )


def test_faults_of_files_are_none_of_its_own() -> None:
    with pytest.raises(FileNotFoundError):
        unwritten(FileNotFoundError(2, "No such file", "x"), "surefoot")
    with pytest.raises(IsADirectoryError):
        run_program("surefoot", lambda: Path("/").open("w").close() or 0)  # type: ignore[func-returns-value]
