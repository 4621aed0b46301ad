"""Which down-projection of low-rank attention is faster at which size: replicated or sharded, on two tensor ranks.

    python benchmarks/low_rank.py                   gloo on the CPU; NCCL where there are enough GPUs
    python benchmarks/low_rank.py --ranks 4 --rounds 20

An arm is the projection to queries, keys and values alone, forward and backward, at r = d/2; dense attention's for
comparison. Arms take turns in every round, and ratios are taken round by round. What decides is how fast the links
are next to the cores: replicated moves 6 r numbers a token through a ring, sharded 6 r + 2 d, and computes 1/P of the
products with D. Two ranks of one machine over gloo's loopback share their cores and move numbers through the kernel;
the outcome says which is faster here, and next to nothing about GPUs on NVLink.

S  tokens, D  hidden size
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from parallel.config import ParallelConfig
from parallel.initialization import Normal
from parallel.linear import ColumnParallelLinear
from parallel.low_rank import DownProjection, Factors, LowRankLinear
from parallel.mesh import Axis, ParallelMesh

CPU_SIZES = [(128, 512), (256, 1024), (512, 1024), (1024, 1024), (1024, 4096)]
GPU_SIZES = [(1024, 8192), (2048, 8192), (4096, 8192), (8192, 8192)]
"""(hidden size, tokens of a micro-batch)."""
WARMUP = 3


class Dense(nn.Module):
    """Queries, keys and values of dense attention."""

    def __init__(self, hidden: int, tensor: Axis) -> None:
        super().__init__()
        blocks = [(hidden, Normal(0, name, 0.02)) for name in "qkv"]
        self.linear = ColumnParallelLinear(hidden, blocks, bias=False, tensor=tensor)

    def forward(self, x_SD: Tensor) -> tuple[Tensor, ...]:
        return self.linear(x_SD).split(self.linear.local_blocks, dim=-1)


def low_rank(hidden: int, down_projection: DownProjection, tensor: Axis) -> LowRankLinear:
    factors = [Factors(hidden, Normal(0, f"{n}.down", 0.02), Normal(0, f"{n}.up", 0.02)) for n in "qkv"]
    return LowRankLinear(
        hidden, hidden // 2, factors, bias=False, down_projection=down_projection, tensor=tensor
    )


def timed_pass(layer: nn.Module, x_SD: Tensor, tensor: Axis) -> float:
    """Seconds of a forward and backward pass, from a barrier to the last rank's end."""
    synchronise(x_SD.device)
    dist.barrier(group=tensor.group)
    started = time.perf_counter()
    outputs = layer(x_SD)
    torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
    synchronise(x_SD.device)
    dist.barrier(group=tensor.group)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(mesh: ParallelMesh, hidden: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each arm by round."""
    dtype = torch.bfloat16 if mesh.device.type == "cuda" else torch.float32
    arms = {"dense": Dense(hidden, mesh.tensor)} | {
        down: low_rank(hidden, down, mesh.tensor) for down in ("replicated", "sharded")
    }
    for arm in arms.values():
        arm.to(mesh.device, dtype)
    x_SD = torch.randn(tokens, hidden, device=mesh.device, dtype=dtype, requires_grad=True)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(-WARMUP, rounds):
        for name in sorted(arms, reverse=number % 2 == 0):  # no arm always goes first
            spent = timed_pass(arms[name], x_SD, mesh.tensor)
            if number >= 0:
                seconds[name].append(spent)
    return seconds


def work(rank: int, options: argparse.Namespace, store: str) -> None:
    """One rank."""
    cuda = options.device == "cuda"
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    torch.set_num_threads(1)
    dist.init_process_group(
        "nccl" if cuda else "gloo", init_method=f"file://{store}", rank=rank, world_size=options.ranks
    )
    config = ParallelConfig(tensor=options.ranks)
    mesh = ParallelMesh.over_world(config, rank, options.ranks, rank, device)
    rows = [
        summary(hidden, tokens, measure(mesh, hidden, tokens, options.rounds))
        for hidden, tokens in (GPU_SIZES if cuda else CPU_SIZES)
    ]
    if rank == 0:
        report(rows, mesh.device_name, options)
    dist.destroy_process_group()


def summary(hidden: int, tokens: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians in milliseconds, and sharded over replicated round by round: median and quartiles."""
    pairs = zip(seconds["sharded"], seconds["replicated"], strict=True)
    ratios = statistics.quantiles([sharded / replicated for sharded, replicated in pairs], n=4)
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    return {
        "hidden_size": hidden,
        "tokens": tokens,
        "milliseconds": medians,
        "sharded_over_replicated": ratios,
    }


def report(rows: list[dict[str, Any]], device: str, options: argparse.Namespace) -> None:
    """A table, and the same as JSON."""
    facts = {
        "device": device,
        "processor": platform.processor() or platform.machine(),
        "ranks": options.ranks,
    }
    print(
        f"{device}, {options.ranks} tensor ranks, torch {torch.__version__}, {options.rounds} rounds; milliseconds"
    )
    print(f"{'hidden':>7} {'tokens':>7} {'dense':>9} {'replicated':>11} {'sharded':>9}  sharded / replicated")
    for row in rows:
        medians, (low, middle, high) = row["milliseconds"], row["sharded_over_replicated"]
        times = f"{medians['dense']:9.2f} {medians['replicated']:11.2f} {medians['sharded']:9.2f}"
        print(f"{row['hidden_size']:7} {row['tokens']:7} {times}  {middle:.2f} ({low:.2f} to {high:.2f})")
    document = {**facts, "torch": torch.__version__, "rounds": options.rounds, "sizes": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/low_rank.json"))
    options = parser.parse_args()
    options.device = "cuda" if torch.cuda.device_count() >= options.ranks else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (options, f"{folder}/store"), nprocs=options.ranks)


if __name__ == "__main__":
    main()
