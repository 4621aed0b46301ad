"""What a GPU makes of training, in eight minutes: one table, one JSON, without a network.

    python benchmarks/gpu.py                                  the most important first, until the budget is spent
    python benchmarks/gpu.py --sections device step compiled  some of it
    python benchmarks/gpu.py --sections tests --budget 600    the tests that need a GPU
    python benchmarks/gpu.py --dry                            all of it on a CPU, with a toy of a model

Each section (`gpu_sections.py`) is a process of its own under a time limit, so that one that fails, hangs or runs out
of memory takes no other with it. Its lines are printed when it ends, and the JSON is written anew, so that a run
that is cut short still tells what it has found.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {
    "device": 60,
    "step": 75,
    "compiled": 110,
    "large": 100,
    "large compiled": 130,
    "methods": 130,
    "launches": 90,
    "memory": 75,
    "probes": 90,
    "large methods": 110,
    "checkpoint": 90,
    "whole": 110,
    "tests": 300,
}
"""Seconds that a section may take, the most important first."""
DEFAULT = [name for name in LIMITS if name != "tests"]
LEAST = 15
"""With fewer seconds left no section begins."""
DRY_LIMIT = 240
ERROR_CHARACTERS = 3000


@dataclass(frozen=True)
class Run:
    """It runs sections, and keeps what they have found."""

    options: argparse.Namespace
    started: float
    results: dict[str, Any]

    @property
    def time_left(self) -> float:
        return self.options.budget - (time.perf_counter() - self.started)

    def section(self, name: str) -> None:
        """Run one, print its lines, and write all results anew."""
        limit = min(DRY_LIMIT if self.options.dry else LIMITS[name], self.time_left)
        found: dict[str, Any] = {"status": "not run: the budget is spent"}
        if limit >= LEAST:
            found = self._run(name, limit)
        self.results["sections"][name] = found
        self.write()
        status = f"[{found['status']}, {found.get('seconds', 0):.0f} s]"
        for line in found.get("rows", []):
            print(f"{name:15} {line}")
        print(f"{name:15} {status}", flush=True)
        if "error" in found:
            print(*found["error"].splitlines()[-6:], sep="\n", flush=True)

    def _run(self, name: str, limit: float) -> dict[str, Any]:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            out, log = Path(folder) / "found.json", Path(folder) / "log"
            words = [sys.executable, str(Path(__file__).with_name("gpu_sections.py")), name]
            words += ["--seconds", str(limit), "--out", str(out), *(["--dry"] if self.options.dry else [])]
            if peak := self.results["sections"].get("device", {}).get("matrix_tflops"):
                words += ["--peak", str(peak)]
            with log.open("w") as file:
                code = ended(words, environment(self.options.dry), file, limit)
            found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
            text = log.read_text(errors="replace")
        found["seconds"] = time.perf_counter() - began
        found["status"] = {0: "done", None: f"stopped after {limit:.0f} s"}.get(
            code, f"failed, exit code {code}"
        )
        if code != 0:
            found["error"] = text[-ERROR_CHARACTERS:]
        return found

    def write(self) -> None:
        path = self.options.out
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(self.results, indent=1))
        beside.replace(path)


def ended(words: list[str], variables: Mapping[str, str], log: Any, limit: float) -> int | None:
    """Run a command; returns its exit code, None where it had to be killed, with all that it had started."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def environment(dry: bool) -> dict[str, str]:
    """The variables of a section: this code is found without being installed; a dry run sees no GPU, and threads that
    wait for each other would make a toy slow."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    toy = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return {**variables, **toy} if dry else variables


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=LIMITS, default=DEFAULT, metavar="SECTION")
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with a toy of a model")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        parser.error("there is no CUDA or ROCm device here; --dry runs on the CPU")
    results = {
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.platform(),
        "dry": options.dry,
        "budget": options.budget,
        "sections": {},
    }
    run = Run(options, time.perf_counter(), results)
    for name in filter(options.sections.__contains__, LIMITS):
        run.section(name)
    failed = [name for name, found in results["sections"].items() if found["status"].startswith("failed")]
    print(f"{time.perf_counter() - run.started:.0f} s in all; {options.out}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
