"""The command ends as other tools do where it is interrupted or nobody reads what it says."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import PREEMPTED
from pretrain.errors import Preempted

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs/gpt/demo.toml")
SUREFOOT = [sys.executable, "-P", "-c", "import sys; from launch.cli import main; sys.exit(main())"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMANDS = (
    ["check", DEMO],
    ["check", DEMO, "--json"],
    ["--help"],
    ["train", "--help"],
    ["prepare", "--help"],
)


@pytest.mark.parametrize("command", [["check", DEMO], ["prepare", "text", "absent", "--out", "x"]])
def test_interrupts_while_modules_are_imported(command: list[str], tmp_path: Path) -> None:
    """The signal comes from a module that both commands import, one in this process and one in the next."""
    for name in ("pydantic", "numpy"):
        (tmp_path / f"{name}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([*SUREFOOT, *command], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_the_module_is_the_command(tmp_path: Path) -> None:
    """Whatever lies in the current directory."""
    (tmp_path / "pydantic.py").write_text("print('foreign')")
    for words, code, told in ((["--version"], 0, "surefoot"), (["nonsense"], 2, "invalid choice")):
        command = [sys.executable, "-m", "launch.cli", *words]
        done = subprocess.run(
            command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "foreign" in done.stdout) == (code, False)
        assert told in done.stdout + done.stderr


@pytest.mark.parametrize("number", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGQUIT"])
def test_signals_before_anything_has_begun(number: str, tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{number})\n")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([*SUREFOOT, "train", DEMO], env=environment, capture_output=True, check=False)
    assert done.returncode == PREEMPTED == Preempted.exit_code


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_nobody_reads(command: list[str]) -> None:
    """`surefoot check | head`, when head has gone."""
    process = subprocess.Popen(
        [*SUREFOOT, *command], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.close()
    assert process.stderr
    assert process.stderr.read() == ""
    # argparse takes no note of what becomes of its help.
    assert process.wait() in ((-signal.SIGPIPE,) if "check" in command else (-signal.SIGPIPE, 0))


@pytest.mark.parametrize(
    "words",
    [
        [*SUREFOOT, "train", DEMO],
        [*SUREFOOT, "prepare", "text", "/nowhere", "--out", "/nowhere/x"],
        [*SUREFOOT, "doctor"],
        [sys.executable, "-P", "-m", "pretrain", DEMO],
    ],
    ids=["train", "prepare", "doctor", "rank"],
)
def test_the_current_directory_was_removed(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    script = 'cd "$0" && rmdir "$0" && "$@"'
    done = subprocess.run(
        ["bash", "-c", script, str(tmp_path / "gone"), *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "the current directory was removed; change to one that is there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams(command: list[str], closed: str) -> None:
    script = f'"$@" {closed}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *SUREFOOT, *command],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(
    "command", [["check", DEMO], ["check", DEMO, "--json"], ["--version"], ["completion", "bash"]]
)
def test_no_room_for_what_is_said(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*SUREFOOT, *command],
            env=ENVIRONMENT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "surefoot: error: cannot write: No space left on device\n")


@pytest.mark.parametrize(
    "words",
    [["train", DEMO, "--set"], ["train", DEMO, "--supervise", "--set"]],
    ids=["train", "supervise"],
)
def test_a_run_folder_of_another_user(words: list[str], tmp_path: Path) -> None:
    """To root every folder is open, so a link that leads to itself stands for one that cannot be read."""
    run = tmp_path / "demo"
    run.symlink_to(run)
    done = subprocess.run(
        [*SUREFOOT, *words, f"run.folder={tmp_path}"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert str(run) in done.stderr
