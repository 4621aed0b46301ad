"""What sharpness-aware minimisation costs: steps of TrainEngine with and without, at every step and at every fourth.

    python benchmarks/sharpness_aware.py            one rank, on a GPU if there is one, else on the CPU
    python benchmarks/sharpness_aware.py --rounds 12 --sizes deep

Arms take turns in one process, four steps each, and ratios are taken round by round, so that a machine whose speed
drifts slows all of them. On a CPU the clock is that of the process, on one thread, so that other programs count
little. Two passes where there was one cost 2, every fourth step 1.25; what is less than that is what
a step does once (batch, probes, judge, update), and what is more is the ascent. Probes look every ten steps, as they
do by default.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import torch

from data_pipeline.text.batch import TokenBatch
from parallel.config import ParallelConfig
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.optim.config import SharpnessAwareConfig
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import Action, StepReport, Verdict

SIZES = {
    # layers, hidden size, heads, vocabulary, sequence, micro-batch, micro-batches
    "small": (4, 256, 4, 1024, 128, 2, 2),
    "deep": (24, 64, 4, 1024, 128, 2, 2),
}
ARMS = {
    "ordinary": SharpnessAwareConfig(),
    "sam": SharpnessAwareConfig(rho=0.05),
    "asam": SharpnessAwareConfig(rho=0.5, adaptive=True),
    "sam, every 4": SharpnessAwareConfig(rho=0.05, every_steps=4),
}
STEPS = 4
"""Steps of an arm in a round; the last one is a multiple of four."""
WARMUP = 2
LEARNING_RATE = 1e-3


def make_config(size: str, reparametrization: str, ascent: SharpnessAwareConfig) -> RunConfig:
    layers, hidden, heads, vocabulary, sequence, micro, accumulation = SIZES[size]
    return RunConfig.model_validate(
        {
            "run": {"name": "benchmark", "steps": 1000},
            "model": {
                "num_layers": layers,
                "hidden_size": hidden,
                "vocabulary_size": vocabulary,
                "reparametrization": reparametrization,
                "attention": {"num_heads": heads},
                "activation_checkpointing": False,
            },
            "data": {
                "sources": [{"path": "none"}],
                "sequence_length": sequence,
                "micro_batch_size": micro,
                "global_batch_size": micro * accumulation,
            },
            "parallel": {"zero_stage": 0},
            "optimizer": {"learning_rate": LEARNING_RATE, "sharpness_aware": ascent.model_dump()},
            "precision": {"dtype": "bf16" if torch.cuda.is_available() else "fp32"},
        }
    )


def make_batches(config: RunConfig, seed: int) -> list[TokenBatch]:
    data, generator = config.data, torch.Generator().manual_seed(seed)
    shape = (data.micro_batch_size, data.sequence_length + 1)
    blocks = [
        torch.randint(0, config.model.vocabulary_size, shape, generator=generator)
        for _ in range(data.global_batch_size // data.micro_batch_size)
    ]
    return [TokenBatch(b[:, :-1], b[:, 1:], torch.ones(b[:, 1:].shape)) for b in blocks]


def make_arm(config: RunConfig, mesh: ParallelMesh) -> Callable[[], float]:
    """It returns what takes the next steps of an arm, and tells the seconds."""
    engine, numbers = assemble_engine(config, plan(config, 1), mesh, detect_kernels()), count(1)

    def judge(report: StepReport) -> Verdict:
        return Verdict(Action.PROCEED if report.finite else Action.VETO)

    def steps() -> float:
        batches = [(step, make_batches(config, step)) for step, _ in zip(numbers, range(STEPS))]  # noqa: B905
        clock = time.perf_counter if mesh.device.type == "cuda" else time.process_time
        started = clock()
        for step, batch in batches:
            engine.step(batch, judge, step=step, learning_rate=LEARNING_RATE)
        if mesh.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    return steps


def measured(size: str, reparametrization: str, mesh: ParallelMesh, rounds: int) -> dict[str, list[float]]:
    """It returns the seconds of each arm by round."""
    arms = {
        name: make_arm(make_config(size, reparametrization, ascent), mesh) for name, ascent in ARMS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-WARMUP, rounds):
        for name in sorted(arms, reverse=number % 2 == 0):  # no arm always goes first
            spent = arms[name]()
            if number >= 0:
                seconds[name].append(spent)
    return seconds


def rows(size: str, reparametrization: str, seconds: dict[str, list[float]]) -> Iterator[dict[str, object]]:
    """It yields the median time of a step of each arm, and its ratio to an ordinary one: quartiles over rounds."""
    for name, values in seconds.items():
        ratios = [ours / plain for ours, plain in zip(values, seconds["ordinary"], strict=True)]
        yield {
            "size": size,
            "reparametrization": reparametrization,
            "arm": name,
            "milliseconds": 1e3 * statistics.median(values) / STEPS,
            "ratio": statistics.quantiles(ratios, n=4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sharpness_aware.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    mesh, load = ParallelMesh.create(ParallelConfig()), os.getloadavg()[0]
    print(
        f"{mesh.device_name}, torch {torch.__version__}, {torch.get_num_threads()} threads, load {load:.1f}"
    )
    print(f"{'size':6} {'weights':8} {'arm':14} {'ms a step':>10}  of an ordinary step: median (quartiles)")
    found = []
    for size in options.sizes:
        for reparametrization in ("none", "sigma"):
            seconds = measured(size, reparametrization, mesh, options.rounds)
            for row in rows(size, reparametrization, seconds):
                found.append(row)
                low, middle, high = row["ratio"]  # type: ignore[misc]
                ratio = f"{middle:.3f} ({low:.3f} to {high:.3f})"
                print(
                    f"{size:6} {reparametrization:8} {row['arm']:14} {row['milliseconds']:10.1f}  {ratio}",
                    flush=True,
                )
    document = {
        "device": mesh.device_name,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": [load, os.getloadavg()[0]],
        "rounds": options.rounds,
        "arms": found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
