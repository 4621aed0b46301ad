"""What `gpu.py` measures, one section a process.

    python benchmarks/gpu_sections.py step --seconds 60 --out step.json [--dry]

Sizes are those of `step.py` and `methods.py`; everything but the sizes is the same on a CPU, for `--dry`. What is
found goes to the JSON file as soon as it is known; `rows` are its lines of the table.
"""

import argparse
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import checkpoint
import methods
import step
import torch
from torch.autograd import DeviceType
from torch.profiler import profile

from parallel.mesh import ParallelMesh
from pretrain.config.run import RunConfig
from pretrain.plan.plan import plan
from pretrain.runtime.kernels import detect_kernels
from pretrain.runtime.libraries import installed_version
from pretrain.runtime.throughput import Throughput, peak_tflops

DTYPE = "bf16"
GIB = 2**30
WORKING_SHARE = 0.7
"""Of a section's seconds, those in which a new round may begin."""
LARGEST_MICRO_BATCH = 16
LAUNCH = re.compile(r"(cuda|cu|hip)\w*Launch")
WAIT = re.compile(r"(cuda|cu|hip)\w*Synchronize")


@dataclass
class Bench:
    """A section's sizes and time, and what it has found."""

    dry: bool
    seconds: float
    out: Path
    measured_peak: float | None
    """TFLOP/s of matrix products on this device, by the first section."""
    started: float = field(default_factory=time.perf_counter)
    found: dict[str, Any] = field(default_factory=lambda: {"rows": []})

    @property
    def until(self) -> float:
        """After that time no round is to begin."""
        return self.started + WORKING_SHARE * self.seconds

    def size(self, name: str) -> str:
        return "toy" if self.dry else name

    def rounds(self, most: int) -> int:
        """Steps, or blocks of them, that are timed of each arm."""
        return 2 if self.dry else most

    def put(self, **values: Any) -> None:
        self.found.update(values)
        beside = self.out.with_suffix(".new")
        beside.write_text(json.dumps(self.found, indent=1))
        beside.replace(self.out)

    def row(self, text: str) -> None:
        self.put(rows=[*self.found["rows"], text])


@dataclass(frozen=True)
class Meter:
    """Memory of a device in bytes: what torch has handed out; on a CPU what the process has."""

    device: torch.device

    @property
    def now(self) -> int:
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else self._of_process("VmRSS")

    @property
    def peak(self) -> int:
        """Since the last `reset`."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else self._of_process("VmHWM")

    def reset(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    @property
    def free(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info()[0]
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def _of_process(self, key: str) -> int:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status[key].split()[0]) * 1024


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def changed(config: RunConfig, **sections: Mapping[str, Any]) -> RunConfig:
    """A configuration with other values of some keys."""
    tables = config.model_dump(mode="json")
    for name, changes in sections.items():
        tables[name].update(changes)
    return RunConfig.model_validate(tables)


def can_compile(config: RunConfig) -> bool:
    return "compile" in type(config.model).model_fields


# The device


def the_device(bench: Bench) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    backends = torch.backends.cuda
    bench.put(
        device=name,
        memory_bytes=Meter(device).free,
        cores=os.cpu_count(),
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        hip=torch.version.hip,
        cudnn=torch.backends.cudnn.version(),
        deepspeed=installed_version("deepspeed"),
        megatron_core=installed_version("megatron-core"),
        kernels=detect_kernels().description,
        attention={
            "flash": backends.flash_sdp_enabled(),
            "memory-efficient": backends.mem_efficient_sdp_enabled(),
            "cudnn": backends.cudnn_sdp_enabled(),
        },
        data_sheet_tflops=peak_tflops(name),
    )
    bench.row(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, {os.cpu_count()} cores")
    bench.row(bench.found["kernels"])
    rates = {n: matrix_rate(n, device) for n in ((256, 512) if bench.dry else (4096, 8192, 16384))}
    bench.put(matrix_tflops=max(rates.values()), matrix_tflops_by_size=rates)
    listed = ", ".join(f"{rate:.3g} at {n}" for n, rate in rates.items())
    bench.row(f"bf16 matrix products, TFLOP/s: {listed}; data sheet: {bench.found['data_sheet_tflops']}")
    copied = copy_rate(2**24 if bench.dry else 2**32, device)
    bench.put(memory_bytes_per_second=copied)
    bench.row(f"copies within memory: {copied / 1e12:.3g} TB/s, read and written")


def per_call(action: Callable[[], object], device: torch.device, calls: int = 10) -> float:
    """Median seconds of a call, over five rounds of some calls in a row."""
    rounds = []
    for _ in range(6):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(calls):
            action()
        synchronize(device)
        rounds.append((time.perf_counter() - began) / calls)
    return statistics.median(rounds[1:])


def matrix_rate(n: int, device: torch.device) -> float:
    """TFLOP/s of a product of two random (n, n) matrices in bf16; on zeros it would be faster."""
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / per_call(lambda: torch.mm(a, b, out=out), device) / 1e12


def copy_rate(size: int, device: torch.device) -> float:
    """Bytes a second, read and written, of copying `size` bytes."""
    source = torch.rand(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / per_call(lambda: target.copy_(source), device)


# Steps beside bare loops


def steps(size: str, *, compiled: bool) -> Callable[[Bench], None]:
    """The section that compares steps at a size with those of a bare loop."""

    def section(bench: Bench) -> None:
        config = step.make_config(bench.size(size), DTYPE, 0)
        if compiled and not can_compile(config):
            bench.row("not there: the configuration has no model.compile")
            return
        mesh = ParallelMesh.create(config.parallel)
        config = fitting(config, Meter(mesh.device).free, arms=2)
        if compiled:
            config = changed(config, model={"compile": True})
        arms = {
            "ours": lambda: step.our_step(config, mesh),
            "bare": lambda: step.bare_step(config, mesh.device, compiled="blocks" if compiled else ""),
        }
        compare(bench, config, mesh, arms)

    return section


def fitting(config: RunConfig, memory: int, arms: int) -> RunConfig:
    """The configuration with the largest micro-batch (a power of 2) for which arms fit together, by the plan: each has
    its weights and states, and while one computes, the others have no activations. A bare loop's take no more than
    twice of ours, in fp32 here and there."""
    micro = LARGEST_MICRO_BATCH if memory > 8 * GIB else config.data.micro_batch_size
    accumulation = config.data.global_batch_size // config.data.micro_batch_size
    while True:
        data = {"micro_batch_size": micro, "global_batch_size": micro * accumulation}
        chosen = changed(config, data=data)
        need = plan(chosen, 1).memory
        if micro == 1 or arms * (need.total - need.activations) + 2 * need.activations < 0.9 * memory:
            return chosen
        micro //= 2


def whole(bench: Bench) -> None:
    """A bare loop whose model is one graph, which takes longer to compile than its blocks."""
    config = step.make_config(bench.size("124m"), DTYPE, 0)
    mesh = ParallelMesh.create(config.parallel)
    arms = {
        "bare, whole": lambda: step.bare_step(config, mesh.device, compiled="whole"),
        "bare": lambda: step.bare_step(config, mesh.device),
    }
    compare(bench, config, mesh, arms)


def compare(
    bench: Bench, config: RunConfig, mesh: ParallelMesh, makers: Mapping[str, Callable[[], step.Step]]
) -> None:
    """Build arms, have them take turns, and tell of their speed and memory."""
    meter = Meter(mesh.device)
    arms: dict[str, step.Step] = {}
    known: dict[str, Any] = {}
    for name, make in makers.items():
        before, began = meter.now, time.perf_counter()
        arms[name] = make()
        built = time.perf_counter()
        first = step.timed(arms[name], step.make_batches(config, 0), mesh.device)
        gc.collect()
        states = meter.now - before
        meter.reset()
        begin = meter.now
        step.timed(arms[name], step.make_batches(config, 1), mesh.device)
        known[name] = {
            "build_seconds": built - began,
            "first_step_seconds": first,
            "states_bytes": states,
            "working_bytes": meter.peak - begin,
        }
        bench.put(arms=known)
    seconds = step.take_turns(arms, config, mesh.device, bench.rounds(24), bench.until)
    layout = plan(config, 1)
    bench.put(parameters=layout.parameters.total, tokens_per_step=layout.batch.tokens)
    for name, values in seconds.items():
        known[name]["seconds"] = values
        bench.row(f"{name:12} " + speed_line(bench, known[name], config, mesh))
    bench.put(arms=known)
    if {"ours", "bare"} <= seconds.keys():
        ratios = [bare / ours for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True)]
        low, middle, high = step.quartiles(ratios)
        bench.put(ratio=middle, ratio_quartiles=[low, high])
        bench.row(
            f"ours / bare {middle:.3f}, quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs, "
            f"{layout.parameters.total / 1e6:.1f} M parameters, "
            f"{config.data.global_batch_size // config.data.micro_batch_size} x {config.data.micro_batch_size} x "
            f"{config.data.sequence_length} tokens"
        )


def speed_line(bench: Bench, arm: dict[str, Any], config: RunConfig, mesh: ParallelMesh) -> str:
    """The speed of an arm, which its record gets as well."""
    layout = plan(config, 1)
    middle = statistics.median(arm["seconds"])
    tokens = layout.batch.tokens / middle
    tflops = Throughput(layout.flops_per_token, devices=1).measures(tokens)["tflops"]
    peaks = {"measured": bench.measured_peak, "data sheet": peak_tflops(mesh.device_name)}
    shares = {f"of {name}": tflops / peak for name, peak in peaks.items() if peak}
    arm.update(tokens_per_second=tokens, tflops=tflops, utilisation=shares)
    return (
        f"{tokens:>10,.0f} tokens/s {tflops:>7.3g} TFLOP/s"
        + "".join(f" {share:6.1%} {name}" for name, share in shares.items())
        + f", {middle:.4f} s, {arm['states_bytes'] / GIB:.1f} + {arm['working_bytes'] / GIB:.1f} GiB, "
        f"first step {arm['first_step_seconds']:.1f} s"
    )


# Methods and probes


def method_arms(size: str, names: Sequence[str], *, block_size: int) -> Callable[[Bench], None]:
    """The section that tells what arms add to a step."""

    def section(bench: Bench) -> None:
        add(bench, size, {name: methods.ARMS[name] for name in ("base", *names)}, block_size)

    return section


def looks(bench: Bench) -> None:
    """What a look of each probe adds to a step."""
    shown = {name: {"probes": {name: True, "every_steps": 1}} for name in methods.NO_PROBES}
    arms = {name: methods.Arm(changes) for name, changes in shown.items()}
    every = {**dict.fromkeys(arms, True), "every_steps": 1}
    arms = {"base": methods.Arm(), "all probes": methods.Arm({"probes": every}), **arms}
    add(bench, "124m", arms, block_size=4)


def add(bench: Bench, size: str, arms: Mapping[str, methods.Arm], block_size: int) -> None:
    """Have arms take turns, and tell what they add to the base."""
    configs = {name: methods.make_config(bench.size(size), DTYPE, arm) for name, arm in arms.items()}
    mesh = ParallelMesh.create(configs["base"].parallel)
    stepping = {name: methods.make_step(config, mesh, arms[name]) for name, config in configs.items()}
    seconds = methods.time_blocks(stepping, configs["base"], bench.rounds(4), bench.until, block_size)
    base = statistics.median(seconds["base"]) / block_size
    bench.put(seconds=seconds, block_size=block_size, step_seconds=base)
    bench.row(f"base {base:.4f} s a step, {len(seconds['base'])} blocks of {block_size} steps")
    found = methods.added(seconds)
    bench.put(added=found)
    for name, (low, middle, high) in found.items():
        bench.row(f"{name:22} {middle:+8.2%}, quartiles {low:+.2%} to {high:+.2%}")


# Launches


def launches(bench: Bench) -> None:
    """What a step asks of the device, counted by torch's profiler."""
    config = changed(step.make_config(bench.size("124m"), DTYPE, 0), probes=methods.NO_PROBES)
    mesh = ParallelMesh.create(config.parallel)
    every = {**dict.fromkeys(methods.NO_PROBES, True), "every_steps": 1}
    arms = {
        "base": config,
        "sigma": changed(config, model={"reparametrization": "sigma"}),
        "probes, looking": changed(config, probes=every),
    }
    if can_compile(config):
        arms["compiled"] = changed(config, model={"compile": True})
    makers = {name: lambda c=c: step.our_step(c, mesh) for name, c in arms.items()}
    makers = {"bare": lambda: step.bare_step(config, mesh.device), **makers}
    counted: dict[str, Any] = {}
    for name, make in makers.items():
        counted[name] = count(make(), config, mesh.device)
        bench.put(counted=counted)
        bench.row(
            "{:16} {launches:6} launches {synchronisations:4} synchronisations {copies_to_host:4} copies to the host "
            "{operators:6} operators; {seconds:.4f} s, busy for {busy_seconds:.4f}".format(
                name, **counted[name]
            )
        )
        if time.perf_counter() > bench.until:
            break


def count(take: step.Step, config: RunConfig, device: torch.device) -> dict[str, Any]:
    """Time some steps, and look at one more through the profiler."""
    for number in range(3):
        step.timed(take, step.make_batches(config, number), device)
    seconds = [step.timed(take, step.make_batches(config, number), device) for number in range(3, 8)]
    for number in (8, 9):  # the first one starts the profiler's machinery
        batches = step.make_batches(config, number)
        with profile() as profiler:
            step.timed(take, batches, device)
    return {"seconds": statistics.median(seconds), **counts(profiler.events() or [])}


def counts(events: Iterable[Any]) -> dict[str, Any]:
    """What the events of a profiler come to: on the host operators and calls of the runtime, on the device the rest."""
    events = list(events)
    # A named range shows on the device as well, and is no kernel.
    named = {event.name for event in events if event.is_user_annotation}
    events = [event for event in events if event.name not in named]
    host = Counter(event.name for event in events if event.device_type == DeviceType.CPU)
    device = [event for event in events if event.device_type != DeviceType.CPU]
    waits = {name: n for name, n in host.items() if WAIT.match(name)}
    spent: Counter[str] = Counter()
    for event in device or [event for event in events if event.name.startswith("aten::")]:
        spent[event.name[:120]] += event.time_range.elapsed_us()
    return {
        "operators": sum(n for name, n in host.items() if name.startswith("aten::")),
        "launches": sum(n for name, n in host.items() if LAUNCH.match(name)),
        "kernels": sum(not event.name.startswith(("Memcpy", "Memset")) for event in device),
        "synchronisations": sum(waits.values()),
        "waits": waits,
        "copies_to_host": sum(event.name.startswith("Memcpy DtoH") for event in device),
        "busy_seconds": covered((event.time_range.start, event.time_range.end) for event in device) / 1e6,
        "longest_us": dict(spent.most_common(25)),
    }


def covered(ranges: Iterable[tuple[float, float]]) -> float:
    """How much of a line ranges cover, where they overlap once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


# Memory, checkpoints, tests


def memory(bench: Bench) -> None:
    """The peak of a step beside the estimate of `surefoot check`."""
    base = step.make_config(bench.size("124m"), DTYPE, 0)
    configs = {
        "124m": base,
        "recomputing": changed(base, model={"activation_checkpointing": True}),
        "sigma": changed(base, model={"reparametrization": "sigma"}),
        "ZeRO-1": changed(base, parallel={"zero_stage": 1}),
        "ZeRO-2": changed(base, parallel={"zero_stage": 2}),
        "ZeRO-3": changed(base, parallel={"zero_stage": 3}),
    }
    if can_compile(base):
        configs["compiled"] = changed(base, model={"compile": True})
    configs["1.3b"] = step.make_config(bench.size("1.3b"), DTYPE, 0)
    mesh = ParallelMesh.create(base.parallel)
    meter, found = Meter(mesh.device), {}
    for name, config in configs.items():
        meter.reset()
        before = meter.now
        take = step.our_step(config, mesh)
        for number in range(3):
            step.timed(take, step.make_batches(config, number), mesh.device)
        estimate = plan(config, 1).memory
        found[name] = {
            "before": before,
            "peak": meter.peak - before,
            "estimate": estimate.total,
            **vars(estimate),
        }
        bench.put(memory=found)
        peak = found[name]["peak"]
        bench.row(
            f"{name:12} peak {peak / GIB:7.2f} GiB, estimate {estimate.total / GIB:7.2f}, {peak / estimate.total:.2f}"
        )
        if time.perf_counter() > bench.until:
            break
        del take
        gc.collect()


def checkpoints(bench: Bench) -> None:
    """What checkpoints, snapshots and rollbacks cost."""
    options = argparse.Namespace(size=bench.size("124m"), pairs=3)
    with tempfile.TemporaryDirectory() as folder:
        arms = checkpoint.Bench(step.make_config(options.size, DTYPE, 0), Path(folder))
        for _ in range(3):
            arms.step()
        for number in range(options.pairs):
            arms.turn(number)
            arms.rollback_turn()
            if number and time.perf_counter() > bench.until:
                break
        bench.put(**checkpoint.report(arms, options))
    step_seconds = statistics.median(arms.seconds["step"])
    for name, values in arms.seconds.items():
        middle = statistics.median(values)
        bench.row(f"{name:22} {middle:8.4f} s, {middle / step_seconds:7.2f} steps")


def tests(bench: Bench) -> None:
    """The tests that need a GPU; without one they are skipped."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/pretrain/test_gpu.py",
    ]
    with tempfile.TemporaryFile("w+") as output:
        code = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT).returncode
        output.seek(0)
        text = output.read()
    bench.put(code=code, output=text[-12000:])
    for line in text.splitlines()[-15:]:
        bench.row(line)
    if code:
        sys.exit(text[-2000:])


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "device": the_device,
    "step": steps("124m", compiled=False),
    "compiled": steps("124m", compiled=True),
    "large": steps("1.3b", compiled=False),
    "large compiled": steps("1.3b", compiled=True),
    "methods": method_arms("124m", ["sigma", "sigma, 1", "MLRA", "probes", "SAM"], block_size=10),
    "large methods": method_arms("1.3b", ["sigma", "probes"], block_size=10),
    "launches": launches,
    "probes": looks,
    "memory": memory,
    "checkpoint": checkpoints,
    "whole": whole,
    "tests": tests,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peak", type=float, help="TFLOP/s of matrix products here")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    bench = Bench(options.dry, options.seconds, options.out, options.peak)
    SECTIONS[options.section](bench)


if __name__ == "__main__":
    main()
