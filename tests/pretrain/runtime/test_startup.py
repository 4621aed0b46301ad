"""A rank is ready for signals, and has streams, before it imports what takes seconds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.runtime.startup import ENDING

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
WRITES = """
import json, os, sys
from pretrain.runtime.startup import open_standard_streams
open_standard_streams()
file = open(sys.argv[1], "w")
print("to standard output")
print("to standard error", file=sys.stderr)
os.system("echo from a program")
sys.stdout.flush()
json.dump([file.fileno(), sys.stdin.read()], file)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_files_do_not_take_the_place_of_closed_streams(closed: str, tmp_path: Path) -> None:
    """Else they would get what programs and libraries print."""
    path = tmp_path / "metrics.jsonl"
    words = [sys.executable, "-c", WRITES, str(path)]
    subprocess.run(["bash", "-c", f'"$@" {closed}', "bash", *words], env=ENVIRONMENT, check=True, input=b"")
    number, read = json.loads(path.read_text())
    assert number > 2
    assert read == ""


@pytest.mark.parametrize("number", ENDING)
def test_signals_end_a_rank_that_imports(number: signal.Signals) -> None:
    script = (
        f"from pretrain.runtime.startup import begin; begin(); import os; os.kill(os.getpid(), {int(number)})"
    )
    done = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, check=False)
    assert done.returncode == 75


def test_ignored_signals_stay_so() -> None:
    """`nohup` ignores SIGHUP, shells ignore SIGINT for what runs in their background."""
    script = (
        "from pretrain.runtime.startup import *; begin(); os.kill(os.getpid(), 1); os.kill(os.getpid(), 2)"
    )
    command = 'trap "" HUP INT; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-c", script], env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0
