"""`make gpu` tells what it has found whatever becomes of a section, and all of it can be run without a GPU."""

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.gpu import Run, ended

ROOT = Path(__file__).parent.parent


def dry_run(out: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """It runs sections on the CPU; returns the exit code and what they have found."""
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--dry", "--out", str(out), *words]
    code = subprocess.run(
        command, capture_output=True, env={**os.environ, "TMPDIR": str(out.parent)}
    ).returncode
    return code, json.loads(out.read_text())["sections"]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # one that init has yet to bury
    except psutil.NoSuchProcess:
        return False


def test_a_section_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    hanging = f"sleep 600 & echo $! > {tmp_path}/started; wait"
    with tempfile.TemporaryFile() as log:
        assert ended(["sh", "-c", hanging], os.environ, log, limit=1) is None
    deadline = time.monotonic() + 60
    while alive(int((tmp_path / "started").read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_spent_budget_is_told(tmp_path: Path) -> None:
    code, sections = dry_run(tmp_path / "gpu.json", "--sections", "device", "step", "--budget", "1")
    assert code == 0
    assert {found["status"] for found in sections.values()} == {"not run: the budget is spent"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_section_runs_on_a_cpu(tmp_path: Path) -> None:
    code, sections = dry_run(tmp_path / "gpu.json", "--budget", "850")
    assert code == 0
    assert {found["status"] for found in sections.values()} == {"done"}
    assert all(found["rows"] for found in sections.values())
    assert (
        sections["launches"]["counted"]["base"]["operators"]
        > sections["launches"]["counted"]["bare"]["operators"]
    )


@pytest.mark.slow
def test_a_section_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    options = Namespace(dry=True, budget=200.0, out=tmp_path / "gpu.json")
    run = Run(options, time.perf_counter(), {"sections": {}})
    run.section("no such section")
    found = json.loads(options.out.read_text())["sections"]["no such section"]
    assert found["status"] == "failed, exit code 2"
    assert "invalid choice: 'no such section'" in found["error"]
