"""In real training under `surefoot train --supervise` a lost rank costs time, and not a bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.runs import contents, differences, dumped, metrics, newest_checkpoint, run_config
from support.training import Layout

from pretrain.run_folder import HEARTBEATS
from pretrain.runtime.heartbeat import read_beats

ROOT = Path(__file__).parents[2]
SUREFOOT = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main())"]
SECONDS = 240.0
STEPS = 100
KILLED_AFTER = 30

Train = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def train(corpus: Path, tmp_path: Path) -> Iterator[Train]:
    """It runs `surefoot train` on two ranks in a folder of its own."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(name: str, *options: str) -> "subprocess.Popen[bytes]":
        sections = {
            "run": {"steps": STEPS},
            "checkpoint": {"every_steps": 20},
            "evaluation": {"every_steps": 50},
        }
        config = run_config(Layout(tensor=2), tmp_path / name, corpus, **sections)
        command = [*SUREFOOT, "train", str(dumped(config, tmp_path / f"{name}.toml")), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        log = (tmp_path / f"{name}.log").open("w")
        running.append(subprocess.Popen(command, env=environment, stderr=log, cwd=tmp_path))
        return running[-1]

    yield begin
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(1.0)
            process.send_signal(signal.SIGINT)
        process.wait(SECONDS)


def steps_taken(run: Path) -> int:
    """It returns how many steps a run has taken so far."""
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_rank_costs_no_bit(train: Train, tmp_path: Path) -> None:
    run, log = tmp_path / "run" / "test", tmp_path / "run.log"
    process, deadline = train("run", "--supervise"), time.monotonic() + SECONDS
    while steps_taken(run) < KILLED_AFTER:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    os.kill(read_beats(run)[1].pid, signal.SIGKILL)
    assert process.wait(SECONDS) == 0, log.read_text()
    kinds = [json.loads(line)["kind"] for line in (run / "supervisor.jsonl").read_text().splitlines()]
    assert kinds == ["started", "lost", "relaunch", "started", "done"]
    assert list((run / HEARTBEATS).iterdir()) == []

    assert train("twin").wait(SECONDS) == 0, (tmp_path / "twin.log").read_text()
    assert len(metrics(tmp_path / "twin", "loss")) == STEPS
    for key in ("loss", "gradient_norm", "learning_rate", "validation_loss"):
        assert metrics(tmp_path / "run", key) == metrics(tmp_path / "twin", key)
    ours, theirs = (newest_checkpoint(tmp_path / name) for name in ("run", "twin"))
    assert differences(contents(ours), contents(theirs)) == []
