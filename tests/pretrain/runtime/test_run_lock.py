import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.errors import ConfigurationError
from pretrain.run_folder import RUN_LOCK
from pretrain.runtime.run_lock import RunLock

HOLD = """
import sys
from pathlib import Path
from pretrain.errors import ConfigurationError
from pretrain.runtime.run_lock import RunLock
try:
    RunLock(Path(sys.argv[1]))
except ConfigurationError as error:
    print(error, flush=True)
else:
    print("locked", flush=True)
sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that tries to take the lock, says so, and waits."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_second_run_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(ConfigurationError) as refused:
        RunLock(tmp_path)
    assert f"process {os.getpid()} on {os.uname().nodename} since" in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert "run.name" in str(refused.value)


def test_lock_can_be_taken_after_release(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLock(tmp_path):
            assert str(os.getpid()) in (tmp_path / RUN_LOCK).read_text()


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    process = holder(tmp_path)
    assert first_line(process) == "locked"
    with pytest.raises(ConfigurationError, match=f"process {process.pid} on"):
        RunLock(tmp_path)
    end(process)
    assert str(process.pid) in (tmp_path / RUN_LOCK).read_text(), "a killed process cannot tidy up"
    RunLock(tmp_path).release()


def test_one_of_two_processes_gets_it(tmp_path: Path) -> None:
    first, second = holder(tmp_path), holder(tmp_path)
    answers = [first_line(first), first_line(second)]
    end(first)
    end(second)
    assert answers.count("locked") == 1
    assert sum("is in use by another run" in answer for answer in answers) == 1


def test_lock_is_not_handed_to_child_processes(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    lock.release()
    RunLock(tmp_path).release()
    child.kill()
    child.wait()


def test_text_in_the_file_is_not_trusted(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    (tmp_path / RUN_LOCK).write_text("[1")
    with pytest.raises(ConfigurationError, match="not said which"):
        RunLock(tmp_path)
    lock.release()
