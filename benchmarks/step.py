"""What a training step costs: TrainEngine on one rank against a bare PyTorch loop over the same GPT.

    python benchmarks/step.py                       one rank, on a GPU if there is one, else on the CPU
    python benchmarks/step.py --size 124m --pairs 20
    python benchmarks/step.py --compile blocks      both arms compiled, with ours uncompiled beside them

The arms take turns in one process, step by step, and the ratio is taken pair by pair, so that a machine whose
speed drifts slows both. Memory is that of a process of its own for each arm: the peak of a few steps above what
Python and torch take once they are imported. The bare loop is what one would write by hand: nn.Linear,
nn.Embedding, SDPA, F.cross_entropy, clip_grad_norm_ and fused AdamW; on a GPU with bf16 autocast, where our arm
keeps bf16 weights with fp32 masters.

B  samples, S  tokens, D  hidden size, H  heads, V  vocabulary
"""

import argparse
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_pipeline.text.batch import TokenBatch
from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.plan.plan import plan
from pretrain.runtime.device_memory import peak_memory
from pretrain.runtime.kernels import detect_kernels
from pretrain.runtime.throughput import peak_tflops
from pretrain.step import Action, StepReport, Verdict

SIZES = {
    # layers, hidden size, heads, vocabulary, sequence, micro-batch, micro-batches
    "toy": (2, 64, 2, 512, 32, 2, 2),
    "deep": (24, 64, 4, 1024, 128, 2, 2),
    "narrow": (6, 256, 4, 8192, 128, 4, 4),
    "tiny": (6, 384, 6, 8192, 256, 4, 2),
    "124m": (12, 768, 12, 50304, 1024, 16, 2),
    "1.3b": (24, 2048, 16, 50304, 1024, 8, 2),
}
LEARNING_RATE = 1e-4

Step = Callable[[list[TokenBatch]], float]
"""It takes one optimizer step and returns its loss."""


def make_config(size: str, dtype: str, zero_stage: int) -> RunConfig:
    layers, hidden, heads, vocabulary, sequence, micro, accumulation = SIZES[size]
    return RunConfig.model_validate(
        {
            "run": {"name": "benchmark", "steps": 1000},
            "model": {
                "num_layers": layers,
                "hidden_size": hidden,
                "vocabulary_size": vocabulary,
                "positions": "learned",
                "attention": {"num_heads": heads},
                "activation_checkpointing": False,
            },
            "parallel": {"zero_stage": zero_stage},
            "data": {
                "sources": [{"path": "none"}],
                "sequence_length": sequence,
                "micro_batch_size": micro,
                "global_batch_size": micro * accumulation,
            },
            "optimizer": {"learning_rate": LEARNING_RATE},
            "precision": {"dtype": dtype},
        }
    )


class PlainBlock(nn.Module):
    """A pre-LN block with nothing but torch."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.output = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x_BSD: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for t in self.qkv(self.norm1(x_BSD)).chunk(3, dim=-1)
        )
        y_BHSK = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BSD = x_BSD + self.output(y_BHSK.transpose(1, 2).flatten(2))
        return x_BSD + self.down(F.gelu(self.up(self.norm2(x_BSD))))


class PlainGPT(nn.Module):
    """The GPT of the bare loop: learned positions, tied head."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        model, hidden = config.model, config.model.hidden_size
        self.embedding = nn.Embedding(model.padded_vocabulary_size, hidden)
        self.positions = nn.Embedding(config.data.sequence_length, hidden)
        heads = model.attention.num_heads
        self.blocks = nn.Sequential(*(PlainBlock(hidden, heads) for _ in range(model.num_layers)))
        self.norm = nn.LayerNorm(hidden)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        x_BSD = self.embedding(tokens_BS) + self.positions.weight
        return self.norm(self.blocks(x_BSD)) @ self.embedding.weight.T


def bare_step(
    config: RunConfig, device: torch.device, *, compiled: Literal["", "blocks", "whole"] = ""
) -> Step:
    """One optimizer step of the bare loop; torch compiles each of its blocks, or the whole model, or nothing."""
    with device:
        model = PlainGPT(config)
    if compiled == "whole":
        model.compile()
    for block in model.blocks if compiled == "blocks" else ():
        block.compile()
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=LEARNING_RATE,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    autocast = config.precision.dtype == "bf16"

    def step(batches: list[TokenBatch]) -> float:
        total = torch.zeros((), device=device)
        for batch in batches:
            tokens, targets = batch.tokens_BS.to(device), batch.targets_BS.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                logits = model(tokens)
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()) / len(batches)
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total.item()

    return step


def bare_arm(config: RunConfig, compiled: Literal["", "blocks", "whole"], mesh: ParallelMesh) -> Step:
    return bare_step(config, mesh.device, compiled=compiled)


def our_step(config: RunConfig, mesh: ParallelMesh) -> Step:
    """One optimizer step of TrainEngine, judged."""
    engine = assemble_engine(config, plan(config, 1), mesh, detect_kernels())
    count = iter(range(1, 10**9))

    def judge(report: StepReport) -> Verdict:
        return Verdict(Action.PROCEED if report.finite else Action.VETO)

    def step(batches: list[TokenBatch]) -> float:
        report, _ = engine.step(batches, judge, step=next(count), learning_rate=LEARNING_RATE)
        return report.loss

    return step


def make_batches(config: RunConfig, seed: int) -> list[TokenBatch]:
    data, generator = config.data, torch.Generator().manual_seed(seed)
    shape = (data.micro_batch_size, data.sequence_length + 1)
    blocks = [
        torch.randint(0, config.model.vocabulary_size, shape, generator=generator)
        for _ in range(data.global_batch_size // data.micro_batch_size)
    ]
    return [TokenBatch(b[:, :-1], b[:, 1:], torch.ones(b[:, 1:].shape)) for b in blocks]


def timed(step: Step, batches: list[TokenBatch], device: torch.device) -> float:
    started = time.perf_counter()
    step(batches)  # returns a Python float, so the device has finished
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def take_turns(
    arms: Mapping[str, Step], config: RunConfig, device: torch.device, pairs: int, until: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each step by arm, a step of each in turn; three rounds to warm up are left out.

    Once the clock, `time.perf_counter`, says `until`, there is no other round than the first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for pair in range(-3, pairs):
        if pair > 0 and time.perf_counter() > until:
            break
        for name in sorted(arms, reverse=pair % 2 == 0):  # neither arm always goes first
            spent = timed(arms[name], make_batches(config, pair + 3), device)
            if pair >= 0:
                seconds[name].append(spent)
    return seconds


def memory_of(arm: Callable[[ParallelMesh], Step], config: RunConfig) -> int:
    """Bytes that a process of its own needs at most for an arm and some steps of it."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as process:
        return process.apply(_needed, (arm, config))


def _needed(arm: Callable[[ParallelMesh], Step], config: RunConfig) -> int:
    mesh = ParallelMesh.create(config.parallel)
    before = peak_memory(mesh.device)
    step = arm(mesh)
    for seed in range(3):
        step(make_batches(config, seed))
    return peak_memory(mesh.device) - before


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of a single value that one."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [*values] * 3
    return low, middle, high


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--ours-only", action="store_true", help="where both arms do not fit on the device")
    parser.add_argument(
        "--compile",
        choices=("blocks", "whole"),
        help="compile our blocks, and of the bare loop its blocks or all",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.json"))
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    size = options.size or ("124m" if gpu else "tiny")
    config = make_config(size, "bf16" if gpu else "fp32", options.zero_stage)
    mesh = ParallelMesh.create(config.parallel)
    build: dict[str, Callable[[ParallelMesh], Step]] = {"ours": partial(our_step, config)}
    if options.compile:
        build = {"ours": partial(our_step, compiled(config)), "uncompiled": build["ours"]}
    if not options.ours_only:
        build["bare"] = partial(bare_arm, config, options.compile or "")
    memory = {name: memory_of(arm, config) for name, arm in build.items()}
    arms = {name: arm(mesh) for name, arm in build.items()}
    report(options, config, mesh, size, take_turns(arms, config, mesh.device, options.pairs), memory)


def compiled(config: RunConfig) -> RunConfig:
    """The same with compiled blocks."""
    return config.model_copy(update={"model": config.model.model_copy(update={"compile": True})})


def report(
    options: argparse.Namespace,
    config: RunConfig,
    mesh: ParallelMesh,
    size: str,
    seconds: dict[str, list[float]],
    memory: dict[str, int],
) -> None:
    layout = plan(config, 1)
    peak = peak_tflops(mesh.device_name)
    print(
        f"{size}: {layout.parameters.total / 1e6:.1f} M parameters, {config.precision.dtype}, {mesh.device_name}, "
    )
    print(
        f"batch {layout.batch.tokens:,} tokens, torch {torch.__version__}, {torch.get_num_threads()} CPU threads"
    )
    result: dict[str, object] = {
        "size": size,
        "device": mesh.device_name,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "zero_stage": options.zero_stage,
        "compile": options.compile,
        "pairs": options.pairs,
        "seconds": seconds,
        "memory_bytes": memory,
    }
    peaks = {name: f", {peak / 2**20:,.0f} MiB at most" for name, peak in memory.items()}
    for name, values in seconds.items():
        speed = layout.batch.tokens / statistics.median(values)
        tflops = speed * layout.flops_per_token / 1e12
        utilisation = f", {tflops / peak:.1%} of {peak:.0f} TFLOP/s" if peak else ""
        print(f"  {name:10} {speed:12,.0f} tokens/s  {tflops:8.2f} TFLOP/s{utilisation}{peaks[name]}")
    for name in [name for name in seconds if name != "ours"]:
        ratios = [other / ours for ours, other in zip(seconds["ours"], seconds[name], strict=True)]
        low, middle, high = quartiles(ratios)
        print(f"  ours / {name} in tokens/s: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}")
        if name == "bare":
            result["ratio_median"] = middle
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
