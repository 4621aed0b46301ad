"""Two hosts have prepared data, a tiny configuration and a hostfile in their common folder."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.two_hosts import TwoHosts, two_hosts

ROOT = Path(__file__).parents[2]
SUREFOOT = [sys.executable, "-P", "-c", "import sys; from launch.cli import main; sys.exit(main())"]
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
}
CONFIG = """
[run]
name = "pair"
steps = 6
[model]
num_layers = 2
hidden_size = 32
vocabulary_size = 500
vocabulary_multiple = 4
attention = { num_heads = 2 }
[parallel]
pipeline = 2
control_timeout_seconds = 30
[data]
sources = [{ path = "data" }]
sequence_length = 32
micro_batch_size = 2
global_batch_size = 4
[optimizer]
learning_rate = 1e-2
[precision]
dtype = "fp32"
[evaluation]
samples = 4
"""


@contextmanager
def host_pair(folder: Path) -> Iterator[TwoHosts]:
    (folder / "text").mkdir()
    sources = sorted(Path(os.__file__).parent.glob("*.py"), key=lambda path: path.stat().st_size)
    for source in sources[-60:]:
        (folder / "text" / source.name).write_bytes(source.read_bytes())
    sizes = ["--vocabulary-size", "500", "--sequence-length", "32"]
    prepare = [sys.executable, "-m", "data_pipeline", "text", "text", "--out", "data", *sizes]
    subprocess.run(prepare, cwd=folder, env={**os.environ, **ENVIRONMENT}, check=True, capture_output=True)
    (folder / "pair.toml").write_text(CONFIG)
    exported = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    (folder / ".deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in exported.items()))
    with two_hosts(folder) as hosts:
        (folder / "hosts").write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
        yield hosts


def losses(folder: Path, name: str) -> list[float]:
    """It returns the losses of the steps in order; of a step that was taken again after a crash, the last."""
    rows = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    found = {row["step"]: row["loss"] for row in map(json.loads, rows) if "loss" in row}
    return [found[step] for step in sorted(found)]


def start(hosts: TwoHosts, name: str, *options: str) -> "subprocess.Popen[bytes]":
    """It starts `surefoot train` on the first host."""
    command = [*SUREFOOT, "train", "pair.toml", "--set", f"run.name={name}", *options]
    return hosts.popen(command, ENVIRONMENT, hosts.folder / f"{name}.log")


def across(hosts: TwoHosts) -> tuple[str, ...]:
    return ("--hostfile", "hosts", "--master-addr", hosts.addresses[0])
