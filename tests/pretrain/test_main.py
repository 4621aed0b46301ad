"""Ranks start as a launcher starts them: as processes with their numbers in the environment."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.distributed import free_port
from support.runs import dumped, run_config
from support.training import Layout, slow

from pretrain.config.as_read import AsRead
from pretrain.config.loader import read_settings

ROOT = Path(__file__).parents[2]
SECONDS = 200.0

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(corpus: Path, tmp_path: Path) -> Iterator[Start]:
    """It starts a rank of two, with what to add to its command line and its environment; what is left is killed in the
    end."""
    config = run_config(
        Layout(tensor=2), tmp_path / "runs", corpus, run={"steps": 2}, evaluation={"samples": 4}
    )
    path, port = dumped(config, tmp_path / "run.toml"), free_port()
    running: list[subprocess.Popen[str]] = []

    def rank(number: int, *words: str, **variables: str) -> "subprocess.Popen[str]":
        world = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        process = subprocess.Popen(
            [sys.executable, "-m", "pretrain", str(path), *words],
            env={
                **os.environ,
                **world,
                **address,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                **variables,
            },
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield rank
    for process in running:
        process.kill()
        process.communicate()


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """It returns the exit code of a rank and what it said."""
    _, errors = process.communicate(timeout=SECONDS)
    return process.returncode, errors


def test_ranks_with_other_settings_do_not_train(start: Start, tmp_path: Path) -> None:
    """`mpirun -n 1 C : -n 1 C --set ...`, or another copy of a file on another host."""
    changes = ("optimizer.learning_rate=1e-4", "parallel.pipeline=2", "parallel.tensor=1", "data.cache=/mine")
    words = [word for change in changes for word in ("--set", change)]
    ranks = [start(0), start(1, *words)]
    (code, told), (other_code, other_told) = map(end, ranks)
    assert (code, other_code, other_told) == (2, 2, ""), told
    assert "optimizer.learning_rate: 0.01 on rank 0, 0.0001 on rank 1" in told
    assert "parallel.tensor: 2 on rank 0, 1 on rank 1" in told
    assert "data.cache" not in told, "hosts may have caches of their own"
    assert not (tmp_path / "runs").exists()


def test_ranks_on_other_cpus_do_not_train(start: Start, tmp_path: Path) -> None:
    """Their replicas would differ by rounding, and the hosts' memory would be blamed."""
    ranks = [start(0), start(1, ATEN_CPU_CAPABILITY="default")]
    (code, told), (other_code, _) = map(end, ranks)
    assert (code, other_code) == (2, 2), told
    assert "instructions of the CPU: " in told
    assert "DEFAULT on rank 1" in told
    assert not (tmp_path / "runs").exists()


def test_a_rank_whose_configuration_is_wrong_ends_all(start: Start) -> None:
    ranks = [start(0), start(1, "--set", "run.step=1")]
    codes = [end(rank) for rank in ranks]
    assert [code for code, _ in codes] == [2, 2]
    assert "run.step = 1: unknown key" in codes[0][1]


def test_settings_that_nobody_has_read_are_not_trained_with(start: Start, tmp_path: Path) -> None:
    """`sed -i ... run.toml` right after `surefoot train run.toml &` is such a case."""
    table, _ = read_settings(tmp_path / "run.toml", ["run.seed=5"])
    code, told = end(start(0, f"--as-read={AsRead.of(table)}", WORLD_SIZE="1"))
    assert code == 2, told
    assert "run.toml: the file has changed since `surefoot train` read it" in told
    assert not (tmp_path / "runs").exists()


def test_ranks_with_other_orders_do_not_train(start: Start) -> None:
    ranks = [start(0), start(1, "--resume", "step00000002-a1")]
    codes = [end(rank) for rank in ranks]
    assert [code for code, _ in codes] == [2, 2]
    assert "--resume: None on rank 0, step00000002-a1 on rank 1" in codes[0][1]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, slow(signal.SIGINT), slow(signal.SIGHUP), slow(signal.SIGUSR1)]
)
def test_a_signal_ends_a_rank_that_waits_for_others(start: Start, number: signal.Signals) -> None:
    rank = start(0)
    assert rank.stderr
    assert "waiting for ranks at 127.0.0.1:" in rank.stderr.readline()
    rank.send_signal(number)
    assert end(rank)[0] == 75


def test_one_interrupt_seals_a_checkpoint(start: Start, tmp_path: Path) -> None:
    """`python -m pretrain` on a terminal has nobody around it who would ask for that."""
    settings = ("parallel.tensor=1", "run.steps=1000000", "checkpoint.every_steps=1000000")
    words = (word for setting in settings for word in ("--set", setting))
    rank, run = start(0, *words, WORLD_SIZE="1"), tmp_path / "runs/test"
    deadline = time.monotonic() + SECONDS
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    rank.send_signal(signal.SIGINT)
    code, told = end(rank)
    assert code == 75, told
    assert "stopping after this step; Ctrl-C again ends the run at once" in told
    assert len(list(run.glob("checkpoints/step*-a1/MANIFEST.json"))) == 1


@pytest.mark.slow
def test_a_rank_without_memory_says_so(start: Start) -> None:
    """Most people meet this first."""
    sizes = ("parallel.tensor=1", "model.hidden_size=1048576", "model.ffn_hidden_size=1048576")
    rank = start(0, *(word for size in sizes for word in ("--set", size)), WORLD_SIZE="1")
    code, told = end(rank)
    assert code == 6, told
    assert "the memory does not suffice: " in told
    assert "Traceback" not in told
    assert "data.micro_batch_size" in told
