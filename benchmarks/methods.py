"""What each method adds to a training step, in time and memory, against the same model without any.

    python benchmarks/methods.py                                all arms, on 2 CPU threads (or one GPU)
    python benchmarks/methods.py --arms tev entropy --pairs 20

All arms train in one process and take turns step by step, in an order that changes from step to step, so that a
machine whose speed drifts slows all of them. A pair is a block of ten steps of an arm and of the base: ten, because
some probes look at every tenth step. The figure is the median over pairs of the ratio of their times. Memory is the
peak of a process that trains one arm alone, less the base's.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from naive_sigma import NaiveSigmaLinear
from step import quartiles

from data_pipeline.text.batch import TokenBatch
from parallel.linear import ColumnParallelLinear, RowParallelLinear
from parallel.mesh import ParallelMesh
from pretrain.config.run import ProbesConfig, RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import Action, StepReport, Verdict

BLOCK = 10
MICRO_BATCHES = 4
SIZES = {
    # layers, hidden size, heads, vocabulary, sequence, micro-batch
    "toy": (2, 64, 2, 512, 32, 2),
    "tiny": (6, 256, 4, 8192, 128, 4),
    "small": (6, 384, 6, 8192, 256, 4),
    "24x64": (24, 64, 4, 1024, 128, 1),
    "48x64": (48, 64, 4, 1024, 128, 1),
    "24x256": (24, 256, 4, 1024, 128, 1),
    "124m": (12, 768, 12, 50304, 1024, 4),
    "deep": (48, 1024, 16, 50304, 1024, 2),
    "1.3b": (24, 2048, 16, 50304, 1024, 4),  # all arms at once do not fit on one device
}
NO_PROBES = {name: False for name, value in ProbesConfig() if value is True}


@dataclass(frozen=True)
class Arm:
    """A configuration that differs from the base in some sections."""

    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    goal: float | None = None
    """The most that it may add to a step."""
    naive_sigma: bool = False
    """sigmaReparam in every forward pass, by autograd, on top of a configuration without it."""


ARMS = {
    "base": Arm(),
    "base again": Arm(),  # what the machine cannot tell apart
    "sigma": Arm({"model": {"reparametrization": "sigma"}}, goal=0.05),
    "sigma, 1": Arm({"model": {"reparametrization": "sigma", "sigma_vectors": 1}}, goal=0.05),
    "naive sigma": Arm(naive_sigma=True),
    "MLRA": Arm({"model": {"attention": {"kind": "mlra"}}}),
    "SAM": Arm({"optimizer": {"learning_rate": 1e-4, "sharpness_aware": {"rho": 0.05}}}),
    "tev": Arm({"probes": {"tev": True}}, goal=0.005),
    "entropy": Arm({"probes": {"attention_entropy": True}}, goal=0.01),
    "variance": Arm({"probes": {"gradient_variance": True}}),
    "spectral": Arm({"probes": {"spectral_norms": True}}),
    "update": Arm({"probes": {"update_rms": True}}),
    "probes": Arm({"probes": dict.fromkeys(NO_PROBES, True)}, goal=0.03),
}

Step = Callable[[list[TokenBatch]], float]


def make_config(size: str, dtype: str, arm: Arm) -> RunConfig:
    layers, hidden, heads, vocabulary, sequence, micro = SIZES[size]
    sections: dict[str, dict[str, Any]] = {
        "run": {"name": "benchmark", "steps": 1000},
        "model": {"num_layers": layers, "hidden_size": hidden, "vocabulary_size": vocabulary},
        "data": {"sources": [{"path": "none"}], "sequence_length": sequence, "micro_batch_size": micro},
        "optimizer": {"learning_rate": 1e-4},
        "precision": {"dtype": dtype},
        "probes": {**NO_PROBES, "every_steps": BLOCK},
        "watchdog": {"enabled": False},
    }
    sections["data"]["global_batch_size"] = micro * MICRO_BATCHES
    for name, changes in arm.sections.items():
        sections[name] = {**sections.get(name, {}), **changes}
    sections["model"]["attention"] = {"num_heads": heads, **sections["model"].get("attention", {})}
    return RunConfig.model_validate(sections)


def make_batches(config: RunConfig, step: int) -> list[TokenBatch]:
    """Random tokens, the same for every arm."""
    generator = torch.Generator().manual_seed(step)
    shape = (MICRO_BATCHES, config.data.micro_batch_size, config.data.sequence_length + 1)
    blocks = torch.randint(config.model.vocabulary_size, shape, generator=generator)
    return [TokenBatch(b[:, :-1], b[:, 1:], torch.ones(b[:, 1:].shape)) for b in blocks]


def reparametrize_naively(layer: ColumnParallelLinear | RowParallelLinear) -> None:
    """Let a layer divide each of its matrices by its spectral norm in every forward pass."""
    sizes = getattr(layer, "local_blocks", [layer.weight.shape[0]])
    matrices = [NaiveSigmaLinear(block, None) for block in layer.weight.detach().split(sizes)]

    def effective() -> torch.Tensor:
        blocks = layer.weight.split(sizes)
        return torch.cat([m.effective(block) for m, block in zip(matrices, blocks, strict=True)])

    layer.weight_in_use = effective  # type: ignore[method-assign]


def make_step(
    config: RunConfig, mesh: ParallelMesh, arm: Arm, clock: Callable[[], float] = time.perf_counter
) -> Step:
    """Train one step; returns the seconds that it took."""
    engine = assemble_engine(config, plan(config, 1), mesh, detect_kernels())
    if arm.naive_sigma:
        for layer in engine.module.modules():
            if isinstance(layer, ColumnParallelLinear | RowParallelLinear):
                reparametrize_naively(layer)
    count = iter(range(1, 10**9))

    def judge(report: StepReport) -> Verdict:
        return Verdict(Action.PROCEED)

    def step(batches: list[TokenBatch]) -> float:
        started = clock()
        engine.step(batches, judge, step=next(count), learning_rate=1e-4)
        if mesh.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    return step


def time_blocks(
    steps: Mapping[str, Step],
    config: RunConfig,
    blocks: int,
    until: float = math.inf,
    block_size: int = BLOCK,
) -> dict[str, list[float]]:
    """Seconds of each block of steps by arm; a block to warm up is left out.

    Once the clock, `time.perf_counter`, says `until`, there is no other block than the first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for block in range(-1, blocks):
        if block > 0 and time.perf_counter() > until:
            break
        spent = dict.fromkeys(names, 0.0)
        for number in range(block_size):
            position = (block + 1) * block_size + number
            batches = make_batches(config, position)
            turn = position % len(names)
            for name in names[turn:] + names[:turn]:
                spent[name] += steps[name](batches)
        for name in names if block >= 0 else ():
            seconds[name].append(spent[name])
    return seconds


def added(seconds: Mapping[str, list[float]], base: str = "base") -> dict[str, tuple[float, float, float]]:
    """What each arm adds to the base, as a fraction of it: lower quartile, median, upper quartile over blocks."""
    return {
        name: quartiles([ours / theirs - 1 for ours, theirs in zip(values, seconds[base], strict=True)])
        for name, values in seconds.items()
        if name != base
    }


def peak_memory(options: argparse.Namespace, arm: str) -> int:
    """Peak bytes of a process that trains one arm for two blocks."""
    arguments = ["--size", options.size, "--threads", str(options.threads), "--memory-of", arm]
    answer = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=True
    )
    return int(answer.stdout.split()[-1])


def train_alone(config: RunConfig, mesh: ParallelMesh, arm: Arm) -> int:
    """Train two blocks; returns the peak of memory, of the device if there is one."""
    step = make_step(config, mesh, arm)
    for position in range(2 * BLOCK):
        step(make_batches(config, position))
    if mesh.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    # ru_maxrss would begin at what the parent held when it forked.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def report(
    options: argparse.Namespace, seconds: Mapping[str, list[float]], memory: Mapping[str, int]
) -> None:
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{torch.get_num_threads()} CPU threads"
    )
    step = statistics.median(seconds["base"]) / BLOCK
    print(
        f"{options.size}, {MICRO_BATCHES} micro-batches, {device}, torch {torch.__version__}, {options.pairs} pairs"
    )
    print(f"base: {step:.3f} s a step")
    print(f"{'arm':12} {'adds':>8} {'quartiles':>18} {'goal':>7} {'memory':>12}")
    found = added(seconds)
    for name, (low, middle, high) in found.items():
        goal = ARMS[name].goal
        due = f"{goal:.1%}" if goal is not None else "-"
        more = f"{(memory[name] - memory['base']) / 2**20:+.1f} MiB" if memory else "-"
        print(f"{name:12} {middle:+8.2%} {f'{low:+.2%} to {high:+.2%}':>18} {due:>7} {more:>12}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "size": options.size,
        "device": device,
        "seconds": seconds,
        "added": {name: middle for name, (_, middle, _) in found.items()},
        "peak_bytes": memory,
    }
    options.out.write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--process-time",
        action="store_true",
        help="seconds of the processor in place of the wall's, for a machine that others use too (with --threads 1)",
    )
    parser.add_argument("--without-memory", action="store_true")
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/methods.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    gpu = torch.cuda.is_available()
    options.size = options.size or ("124m" if gpu else "tiny")
    names = [options.memory_of] if options.memory_of else list(dict.fromkeys(["base", *options.arms]))
    configs = {name: make_config(options.size, "bf16" if gpu else "fp32", ARMS[name]) for name in names}
    mesh = ParallelMesh.create(configs[names[0]].parallel)
    if options.memory_of:
        print(train_alone(configs[options.memory_of], mesh, ARMS[options.memory_of]))
        return
    clock = time.process_time if options.process_time else time.perf_counter
    steps = {name: make_step(config, mesh, ARMS[name], clock) for name, config in configs.items()}
    seconds = time_blocks(steps, configs["base"], options.pairs)
    report(
        options,
        seconds,
        {} if options.without_memory else {name: peak_memory(options, name) for name in names},
    )


if __name__ == "__main__":
    main()
