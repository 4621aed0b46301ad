"""Stacks on request: they arrive also where Python is stuck, and healthy runs leave no files."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from support.disk import fill, small_disk

from pretrain.runtime.stacks import REQUEST, request_stacks, stacks_file, stacks_on_request

ROOT = Path(__file__).parents[3]
STUCK = """
import ctypes, sys
from pathlib import Path
from pretrain.runtime.stacks import stacks_on_request

def collective_that_hangs():
    print(flush=True)
    ctypes.PyDLL(None).sleep(600)  # keeps the interpreter's lock

with stacks_on_request(Path(sys.argv[1]), 3):
    collective_that_hangs()
"""
PLAIN = "import signal; print(flush=True); signal.pause()"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_rank_that_holds_the_interpreter_answers(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            request_stacks(process.pid)
            wait_for(lambda: "collective_that_hangs" in stacks_file(tmp_path, 3).read_text())
            assert f"process {process.pid}, started" in stacks_file(tmp_path, 3).read_text()
        finally:
            process.kill()


def test_a_process_without_a_handler_is_not_disturbed() -> None:
    with subprocess.Popen([sys.executable, "-c", PLAIN], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        request_stacks(process.pid)
        time.sleep(0.2)
        assert process.poll() is None
        process.kill()
    request_stacks(process.pid)  # nor is one that is gone an error


def test_who_is_not_asked_leaves_nothing_and_evidence_stays(tmp_path: Path) -> None:
    with stacks_on_request(tmp_path, 0):
        pass
    assert list(tmp_path.iterdir()) == []
    with stacks_on_request(tmp_path, 0):
        os.kill(os.getpid(), REQUEST)
    first = stacks_file(tmp_path, 0).read_text()
    assert "test_stacks.py" in first
    with stacks_on_request(tmp_path, 0):
        pass
    assert stacks_file(tmp_path, 0).read_text() == first


def test_a_disk_that_is_full_ends_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size=64 * 1024) as disk:
        (disk / "stacks").mkdir()
        fill(disk)
        with stacks_on_request(disk, 0):
            os.kill(os.getpid(), REQUEST)
        assert not (disk / "stacks").exists()


def test_without_a_disk_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("in the way")
    with stacks_on_request(tmp_path, 0):
        pass
    assert (tmp_path / "stacks").read_text() == "in the way"
