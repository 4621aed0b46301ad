"""What the watchdog adds to a step: signals, their reduction over the ranks, detectors, policy and digest.

    python benchmarks/watchdog_cost.py                two data-parallel gloo ranks, one thread each
    python benchmarks/watchdog_cost.py --pairs 20

Arms train in the same processes and take turns step by step, in an order that changes; a pair is a block of ten steps
of an arm and of the base, since some probes look at every tenth step. The figure is the median over pairs of the
ratio of their times on rank 0.
  base      no probes, non-finite updates withheld
  signals   + what the watchdog looks at in every step: TEV, its reach, the digest (the probes of every tenth step are
            in benchmarks/methods.py)
  watchdog  + Watchdog.judge on every rank
Host memory's candidates, one every 64 steps, are in benchmarks/checkpoint.py (`snapshot`).
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import methods
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from methods import BLOCK, MICRO_BATCHES, NO_PROBES, SIZES, Arm, make_batches

from data_pipeline.text.batch import TokenBatch
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.ledger.history import RunHistory
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import StepReport, TrainState, Verdict
from pretrain.watchdog.policy import judge_finite
from pretrain.watchdog.watchdog import Watchdog

RANKS = 2
GOAL = 0.01
ARMS = {"base": NO_PROBES, "signals": {**NO_PROBES, "tev": True}, "watchdog": {**NO_PROBES, "tev": True}}


def make_config(probes: dict[str, bool]) -> RunConfig:
    # A short window, else the detectors have no baseline to compare with; and random tokens must not roll back.
    sections: dict[str, dict[str, Any]] = {
        "parallel": {"zero_stage": 1},
        "data": {"global_batch_size": SIZES["tiny"][-1] * MICRO_BATCHES * RANKS},
        "probes": probes,
        "watchdog": {"enabled": True, "window": 16, "dry_run": True},
    }
    return methods.make_config("tiny", "fp32", Arm(sections))


def make_step(config: RunConfig, mesh: ParallelMesh, *, watched: bool) -> Callable[[list[TokenBatch]], float]:
    """Train one step; returns the seconds that it took on this rank."""
    engine = assemble_engine(config, plan(config, RANKS), mesh, detect_kernels())
    watchdog, history, state = Watchdog(config), RunHistory(), TrainState()

    def judge(report: StepReport) -> Verdict:
        if not watched:
            return judge_finite(report, state)
        draws = (state.samples, state.samples + config.data.global_batch_size)
        return watchdog.judge(report, state, history, draws)

    def step(batches: list[TokenBatch]) -> float:
        nonlocal state
        dist.barrier()
        started = time.perf_counter()
        report, verdict = engine.step(
            batches,
            judge,
            step=state.step + 1,
            learning_rate=1e-4,
            digest=watchdog.digest,
        )
        state = state.after(report, verdict)
        return time.perf_counter() - started

    return step


def work(rank: int, options: argparse.Namespace, store: str) -> None:
    """One rank."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
    }  # DeepSpeed asks for them
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    configs = {name: make_config(probes) for name, probes in ARMS.items()}
    mesh = ParallelMesh.over_world(configs["base"].parallel, rank, RANKS, rank, torch.device("cpu"))
    steps = {name: make_step(config, mesh, watched=name == "watchdog") for name, config in configs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for block in range(-4, options.pairs):  # the first blocks warm up and fill the detectors' windows
        spent = dict.fromkeys(names, 0.0)
        for number in range((block + 4) * BLOCK, (block + 5) * BLOCK):
            batches = make_batches(configs["base"], number * RANKS + rank)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                spent[name] += steps[name](batches)
        for name in names if block >= 0 else ():
            seconds[name].append(spent[name])
    if rank == 0:
        report(seconds, options)
    dist.destroy_process_group()


def report(seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    base = seconds["base"]
    print(
        f"{RANKS} gloo ranks of one thread, {options.pairs} pairs; base {statistics.median(base) / BLOCK:.3f} s a step"
    )
    result: dict[str, Any] = {"seconds": seconds}
    for name in ("signals", "watchdog"):
        ratios = [ours / theirs - 1 for ours, theirs in zip(seconds[name], base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        goal = f", goal {GOAL:.0%}" if name == "watchdog" else ""
        print(f"  {name:9} adds {middle:+.2%}   quartiles {low:+.2%} to {high:+.2%}{goal}")
        result[name] = middle
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/watchdog_cost.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, args=(options, f"{folder}/store"), nprocs=RANKS, start_method="spawn")


if __name__ == "__main__":
    main()
