"""`surefoot train --hostfile` trains over two hosts, a stage on either, to the losses of one, and heeds signals."""

import os
import signal
import time
from collections.abc import Iterator

import pytest
from support.host_pair import across, host_pair, losses, start
from support.traps import set_traps
from support.two_hosts import TwoHosts, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

SECONDS = 150.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    with host_pair(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def test_two_hosts_train_as_one_does(pair: TwoHosts) -> None:
    set_traps(pair.folder)  # it is the current directory, which DeepSpeed puts on the search path of hosts
    distributed = start(pair, "two", *across(pair), "--set", 'journal.console = "plain"')
    assert distributed.wait(SECONDS) == 0, (pair.folder / "two.log").read_text()
    local = start(pair, "one", "--num-accelerators", "2", "--set", "parallel.timeout_seconds=60")
    assert local.wait(SECONDS) == 0, (pair.folder / "one.log").read_text()
    assert len(losses(pair.folder, "one")) == 6
    assert losses(pair.folder, "two") == losses(pair.folder, "one")


@pytest.mark.slow
def test_a_signal_stops_the_ranks_of_both_hosts(pair: TwoHosts) -> None:
    process = start(pair, "stopped", *across(pair), "--set", "run.steps=100000")
    metrics = pair.folder / "runs" / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + SECONDS
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None, (pair.folder / "stopped.log").read_text()
        assert time.monotonic() < deadline, "no step was taken"
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(SECONDS) == 75, (pair.folder / "stopped.log").read_text()
    assert list((pair.folder / "runs" / "stopped" / "checkpoints").glob("step*/MANIFEST.json"))


@pytest.mark.slow
def test_a_folder_that_the_hosts_do_not_share_is_told_before_the_first_step(pair: TwoHosts) -> None:
    (pair.folder / "runs").mkdir(exist_ok=True)
    with pair.own_disk(1, pair.folder / "runs"):
        code = start(pair, "apart", *across(pair)).wait(SECONDS)
    told = (pair.folder / "apart.log").read_text()
    assert code == 2, told
    assert "run.folder: runs/apart is another folder for rank 1 on " in told
    assert "Traceback" not in told
