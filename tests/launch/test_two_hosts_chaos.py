"""The network fails under a supervised run on two hosts: nobody intervenes, and still one run goes on."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.host_pair import across, host_pair, losses, start
from support.two_hosts import TwoHosts, why_not

from pretrain.ledger.file import read_ledger
from pretrain.run_folder import HEARTBEATS, LEDGER
from pretrain.runtime.heartbeat import is_alive, read_beats

pytestmark = [
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

SECONDS = 300.0
TIMEOUTS = {"parallel.timeout_seconds": 20, "parallel.control_timeout_seconds": 10}
LONG = {"run.steps": 100, "checkpoint.every_steps": 10, **TIMEOUTS}
CUT_OFF = 45.0
"""It covers the longer of the timeouts, and time to start and to take note on a busy machine."""
DOWN, UP = 0.3, 1.5
"""Seconds. Of what is sent again, a part is lost again, and each time it waits twice as long: down for half of the time
would make a timeout of 20 s."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    with host_pair(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def twin(pair: TwoHosts) -> list[float]:
    """It returns losses of the run that nothing happens to."""
    process = start(pair, "twin", "--num-accelerators", "2", *settings())
    assert process.wait(SECONDS) == 0, (pair.folder / "twin.log").read_text()
    course = losses(pair.folder, "twin")
    assert len(course) == LONG["run.steps"]
    return course


def settings() -> list[str]:
    """It returns the settings of a run over two hosts."""
    return [word for key, value in LONG.items() for word in ("--set", f"{key}={value}")]


def events(run: Path) -> list[str]:
    """It returns the kinds of the supervisor's events."""
    path = run / "supervisor.jsonl"
    return [json.loads(line)["kind"] for line in path.read_text().splitlines()] if path.is_file() else []


def ledger_kinds(run: Path) -> list[str]:
    """It returns the kinds of the ledger's records."""
    return [str(record.kind) for record in read_ledger(run / LEDGER)]


def wait_for(
    condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path, seconds: float = SECONDS
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"waited too long: {log.read_text()}"
        time.sleep(0.1)


def test_a_cut_cable(pair: TwoHosts, twin: list[float]) -> None:
    """Both sides leave by themselves, nothing is launched before the hosts answer, and one lineage continues."""
    run, log = pair.folder / "runs" / "cut", pair.folder / "cut.log"
    process = start(pair, "cut", *across(pair), *settings(), "--supervise")
    wait_for(lambda: any(run.glob("checkpoints/*/MANIFEST.json")), process, log)
    ranks = list(read_beats(run).values())
    pair.set_link(1, "down")
    # A rank that is killed would leave its heartbeat.
    wait_for(lambda: not read_beats(run), process, log, CUT_OFF)
    wait_for(lambda: not any(map(is_alive, ranks)), process, log, CUT_OFF)
    assert [beat.rank for beat in ranks] == [0, 1]
    wait_for(lambda: "waiting" in events(run), process, log)
    assert events(run) == ["started", "lost", "waiting"]
    pair.set_link(1, "up")
    assert process.wait(SECONDS) == 0, log.read_text()
    assert events(run) == ["started", "lost", "waiting", "relaunch", "started", "done"]
    assert list((run / HEARTBEATS).iterdir()) == []

    assert losses(pair.folder, "cut") == twin


def test_a_link_that_flaps_and_loses_packets_only_slows_a_run(pair: TwoHosts, twin: list[float]) -> None:
    """What is lost is sent again: nothing times out, nothing is launched again, no verdict differs."""
    run, log = pair.folder / "runs" / "flapping", pair.folder / "flapping.log"
    process = start(pair, "flapping", *across(pair), *settings(), "--supervise")
    wait_for(lambda: any(run.glob("checkpoints/*/MANIFEST.json")), process, log)
    flaps = 0
    with pair.congested(0), pair.congested(1):
        while process.poll() is None:
            pair.set_link(1, "down")
            time.sleep(DOWN)
            pair.set_link(1, "up")
            time.sleep(UP)
            flaps += 1
    assert process.wait(SECONDS) == 0, log.read_text()
    assert flaps >= 5
    assert events(run) == ["started", "done"]
    assert not {"rollback_intent", "veto"} & set(ledger_kinds(run))
    assert losses(pair.folder, "flapping") == twin
