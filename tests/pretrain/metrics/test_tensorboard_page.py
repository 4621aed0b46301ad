"""TensorBoard, opened in a browser on a run that the journal wrote, shows the curves."""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.browser import CHROMIUM, text_of_page

from pretrain.config.run import JournalConfig
from pretrain.metrics.logger import FileLogger
from pretrain.step import Action, StepReport, Verdict
from pretrain.tasks.next_token import Perplexity

STEPS = 50

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    journal = FileLogger(
        tmp_path,
        JournalConfig(console="none", peak_tflops=1.0),
        total_steps=STEPS,
        first_step=1,
        flops_per_token=1e6,
        world_size=1,
        device_name="cpu",
        metrics=(Perplexity(),),
    )
    with journal:
        for step in range(1, STEPS + 1):
            report = StepReport(step, 2 + 5 / step, 0.5, 1e-3, samples=8, tokens=1024)
            journal.record(report, Verdict(Action.PROCEED), {"seconds": 0.1, "wait_seconds": 0.01})
        journal.validation(STEPS, 2.5, targets=1024, seconds=1.0, metrics={})
    return tmp_path


@pytest.fixture
def address(run_folder: Path) -> Iterator[str]:
    """A TensorBoard on loopback that shows the run."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--logdir", str(run_folder), "--host", "127.0.0.1", "--port", str(port)]
    with (run_folder / "tensorboard.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *arguments], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def get(url: str) -> object:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def wait_for_curves(address: str) -> dict[str, dict[str, object]]:
    """Tags by run, as soon as the server has read them."""
    for _ in range(120):
        try:
            runs = get(f"{address}/data/plugin/scalars/tags")
        except OSError:
            runs = {}
        if isinstance(runs, dict) and runs:
            return runs
        time.sleep(0.5)
    raise AssertionError("TensorBoard served no curves within a minute")


def test_curves_are_served_and_shown(run_folder: Path, address: str) -> None:
    tags = wait_for_curves(address)["tensorboard"]
    assert {"train/loss", "train/perplexity", "throughput/mfu", "valid/loss"} <= set(tags)
    points = get(f"{address}/data/plugin/scalars/scalars?run=tensorboard&tag=train/loss")
    assert isinstance(points, list)
    assert [step for _, step, _ in points] == list(range(1, STEPS + 1))

    wanted = ["train/loss", "valid/loss", "2.1", "2.5"]
    page = text_of_page(f"{address}/?tagFilter=loss#timeseries", run_folder / "profile", wanted)
    assert [word for word in wanted if word not in page] == [], page
