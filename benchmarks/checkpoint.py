"""What a checkpoint that can be trusted costs, beside DeepSpeed's own, and what a rollback costs in steps.

    python benchmarks/checkpoint.py                    one rank, on a GPU if there is one, else on the CPU
    python benchmarks/checkpoint.py --size 124m --pairs 5 --folder /mnt/checkpoints

Arms take turns in one process, each on a disk with nothing left to write, and ratios are taken turn by turn:
  stock    DeepSpeed's save_checkpoint, which returns when the operating system has the bytes
  durable  the same, and its files forced to disk
  sealed   what a run waits for when it takes a checkpoint of ours: a copy in host memory, a checksum of the state, and
           later, when a thread has written and hashed the files and forced them to disk (`thread`), the manifest
  at once  the same where the run waits for the thread too, as at its end
A rollback from disk verifies, loads and proves; one from host memory copies back and proves.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from step import SIZES, make_batches, make_config

from data_pipeline.files import sync_folder
from parallel.mesh import ParallelMesh
from pretrain.backend.quiet import quiet
from pretrain.checkpoint.compatibility import Compatibility
from pretrain.checkpoint.folder import CheckpointFolder
from pretrain.checkpoint.loader import CheckpointLoader
from pretrain.checkpoint.snapshots import SnapshotStore
from pretrain.checkpoint.tag import Tag
from pretrain.checkpoint.writer import CheckpointWriter
from pretrain.config.run import RunConfig
from pretrain.engine.build import assemble_engine
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.step import Action, StepReport, TrainState, Verdict

GOAL = 1.10
"""The most that sealing may cost, relative to the stock save."""


@dataclass
class Bench:
    """An engine with its checkpoints and snapshots; `seconds` holds what was timed, by name."""

    config: RunConfig
    folder: Path
    seconds: dict[str, list[float]] = field(default_factory=dict)
    bytes: int = 0

    def __post_init__(self) -> None:
        self.mesh = ParallelMesh.create(self.config.parallel)
        self.engine = assemble_engine(self.config, plan(self.config, 1), self.mesh, detect_kernels())
        identity = Compatibility.of(self.config, self.mesh, "benchmark")
        checkpoints = CheckpointFolder(self.folder / "ours", self.mesh, watched=True, report=print)
        self.writer = CheckpointWriter(checkpoints, self.config.checkpoint, identity)
        self.loader = CheckpointLoader(checkpoints, identity)
        self.tier = SnapshotStore(2, horizon=0)
        self.step_number = 0

    def timed(self, name: str, action: Callable[[], object]) -> None:
        started = time.perf_counter()
        action()
        if self.mesh.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.setdefault(name, []).append(time.perf_counter() - started)

    def step(self) -> None:
        def proceed(report: StepReport) -> Verdict:
            return Verdict(Action.PROCEED)

        self.step_number += 1
        batches = make_batches(self.config, self.step_number)
        self.engine.step(batches, proceed, step=self.step_number, learning_rate=1e-4)

    def stock_save(self, *, durable: bool) -> None:
        """As DeepSpeed does it; its files are removed later."""
        engine = self.engine._engine
        ours, engine.checkpoint_engine = engine.checkpoint_engine, TorchCheckpointEngine()
        try:
            with quiet():
                engine.save_checkpoint(str(self.folder / "stock"), tag="stock")
        finally:
            engine.checkpoint_engine = ours
        if durable:
            for path in self.stock_files():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(self.folder / "stock/stock")

    def stock_files(self) -> Iterator[Path]:
        return (self.folder / "stock/stock").glob("*.pt")

    def sealed_save(self) -> Tag:
        return self.writer.finish(self.writer.begin(self.engine, self.state, {}, {}))

    def sealed_turn(self) -> None:
        """A save as a run has it, the thread's part timed on its own."""
        started = time.perf_counter()
        pending = self.writer.begin(self.engine, self.state, {}, {})
        begun = time.perf_counter()
        pending.files.result()
        flushed = time.perf_counter()
        self.writer.finish(pending)
        waited = begun - started + time.perf_counter() - flushed
        self.seconds.setdefault("sealed", []).append(waited)
        self.seconds.setdefault("thread", []).append(flushed - begun)

    def certify(self, tag: Tag) -> None:
        self.writer.finish_certify(self.writer.start_verify(tag), 0)

    @property
    def state(self) -> TrainState:
        return TrainState(step=self.step_number)

    def turn(self, number: int) -> None:
        """Every arm once, in an order that changes from turn to turn."""
        arms: list[tuple[str, Callable[[], object]]] = [
            ("stock", lambda: self.stock_save(durable=False)),
            ("durable", lambda: self.stock_save(durable=True)),
            ("at once", self.sealed_save),
            ("", self.sealed_turn),
        ]
        first = number % len(arms)
        for name, arm in arms[first:] + arms[:first]:
            os.sync()
            if name:
                self.timed(name, arm)
            else:
                arm()  # which takes its own times
            self.bytes = max(self.bytes, sum(path.stat().st_size for path in self.folder.glob("*/*/*.pt")))
            self._clear()

    def rollback_turn(self) -> None:
        """A snapshot and a checkpoint, some steps, and back to each."""
        self.timed("snapshot", lambda: self.tier.take(self.engine, self.state, {}, {}))
        tag, snapshot = self.sealed_save(), self.tier.choose(self.step_number)
        assert snapshot is not None
        os.sync()
        self.timed("certify", lambda: self.certify(tag))
        for _ in range(3):
            self.timed("step", self.step)
        self.timed("rollback from memory", lambda: self.tier.restore(self.engine, snapshot))
        self.timed("rollback from disk", lambda: self.loader.load(self.engine, tag))
        self._clear()

    def _clear(self) -> None:
        for name in ("stock", "ours"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def ratios(seconds: list[float], base: list[float]) -> tuple[float, float, float]:
    """Quartiles of the ratios, turn by turn."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(seconds, base, strict=True)], n=4)
    return low, middle, high


def report(bench: Bench, options: argparse.Namespace) -> dict[str, object]:
    seconds = bench.seconds
    median = {name: statistics.median(values) for name, values in seconds.items()}
    layout = plan(bench.config, 1)
    print(
        f"{options.size}: {layout.parameters.total / 1e6:.1f} M parameters, {bench.config.precision.dtype}, "
        f"{bench.mesh.device_name}, {bench.bytes / 1e6:.0f} MB a checkpoint, {options.pairs} turns"
    )
    result: dict[str, object] = {
        "size": options.size,
        "device": bench.mesh.device_name,
        "processor": platform.processor() or platform.machine(),
        "bytes": bench.bytes,
        "seconds": seconds,
    }
    for base in ("stock", "durable"):
        low, middle, high = ratios(seconds["sealed"], seconds[base])
        goal = f", goal {GOAL:.2f}" if base == "stock" else ""
        print(f"  sealed / {base:7} {middle:6.2f}   quartiles {low:.2f} to {high:.2f}{goal}")
        result[f"sealed_over_{base}"] = middle
    for name in (
        "stock",
        "durable",
        "sealed",
        "thread",
        "at once",
        "certify",
        "snapshot",
        "rollback from memory",
        "rollback from disk",
    ):
        steps = median[name] / median["step"]
        print(f"  {name:20} {median[name]:8.3f} s  {steps:7.2f} steps")
        result[f"{name.replace(' ', '_')}_in_steps"] = steps
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--size", choices=SIZES, default="124m" if gpu else "tiny")
    parser.add_argument("--zero-stage", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; none: the one of temporary files"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoint.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        config = make_config(options.size, "bf16" if gpu else "fp32", options.zero_stage)
        bench = Bench(config, Path(folder))
        for _ in range(3):
            bench.step()
        for number in range(options.pairs):
            bench.turn(number)
            bench.rollback_turn()
        result = report(bench, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
