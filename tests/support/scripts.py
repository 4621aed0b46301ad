"""The scripts of docs/clusters.md are run as they stand there, in a folder with data and a tiny configuration."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from support.corpus import write_corpus
from support.runs import contents, differences, newest_checkpoint

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/clusters.md"
SECONDS = 240.0
CONFIG = """
[run]
name = "test"
folder = "undisturbed"
steps = {steps}
[model]
num_layers = 2
hidden_size = 16
dropout = 0.1
vocabulary_size = 300
vocabulary_multiple = 4
attention = {{ num_heads = 2 }}
[parallel]
tensor = 2
[data]
sources = [{{ path = "corpus/data" }}]
sequence_length = 32
micro_batch_size = 2
global_batch_size = 4
[optimizer]
learning_rate = 1e-3
[precision]
dtype = "fp32"
[checkpoint]
every_steps = 1000000
[evaluation]
samples = 4
[journal]
console = "plain"
tensorboard = false
"""
WRAPPER = """#!/bin/sh
exec {python} -c 'import sys; from launch.cli import main; sys.exit(main())' "$@"
"""


@lru_cache
def scripts() -> dict[str, str]:
    """It returns the named code blocks of the document: `bash NAME` stands behind the fence."""
    return dict(re.findall(r"^```bash (\S+)\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL))


@dataclass(frozen=True)
class Place:
    """It is a folder in which scripts of the document find what they name: `run.toml` and the programs."""

    folder: Path
    environment: Mapping[str, str]

    def script(self, name: str, replaced: Mapping[str, str] | None = None) -> Path:
        """It writes a script of the document, with some of its words replaced, and returns its path."""
        text = scripts()[name]
        for old, new in (replaced or {}).items():
            assert old in text, f"{old} is not in {name}"
            text = text.replace(old, new)
        path = self.folder / name
        path.write_text(text)
        return path

    def popen(self, *words: str | Path, log: str, **variables: str) -> "subprocess.Popen[bytes]":
        """It starts a program in the folder, in a session of its own, its output in a file."""
        return subprocess.Popen(
            list(map(str, words)),
            env={**self.environment, **variables},
            cwd=self.folder,
            stdout=(self.folder / log).open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *words: str | Path, log: str, **variables: str) -> int:
        """It runs a program to its end and returns the exit code."""
        return self.popen(*words, log=log, **variables).wait(SECONDS)

    def log(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace")

    def configure(self, name: str) -> None:
        """It points `run.toml` to a folder of runs of its own."""
        text = (self.folder / "undisturbed.toml").read_text()
        (self.folder / "run.toml").write_text(text.replace('"undisturbed"', json.dumps(name)))

    def steps(self, name: str) -> int:
        """It returns how many steps a run has noted."""
        path = self.folder / name / "test/metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_steps(self, name: str, least: int, process: "subprocess.Popen[bytes] | None" = None) -> None:
        """It waits until a run has noted so many steps."""
        deadline = time.monotonic() + SECONDS
        while self.steps(name) < least:
            assert process is None or process.poll() is None, f"{name} ended early"
            assert time.monotonic() < deadline, f"{name} does not train"
            time.sleep(0.05)

    def wait_for_record(self, name: str, kind: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
        """It waits until the ledger of a run has a record of a kind."""
        deadline = time.monotonic() + SECONDS
        while kind not in self.kinds(name):
            assert process is None or process.poll() is None, f"{name} ended early"
            assert time.monotonic() < deadline, f"{name} has no record {kind}: {self.kinds(name)}"
            time.sleep(0.1)

    def kinds(self, name: str, run: str = "test") -> list[str]:
        """It returns the kinds of the records in the ledger of a run."""
        path = self.folder / name / run / "ledger.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line)["kind"] for line in lines if line.endswith("\n")]

    def differences(self, name: str, run: str = "test") -> list[str]:
        """It returns where the final state of a run differs by a bit from that of the undisturbed one.

        The watchdog's own is left out: an update that ends a session is not measured in the next one.
        """
        ours = contents(newest_checkpoint(self.folder / name, run))
        theirs = contents(newest_checkpoint(self.folder / "undisturbed"))
        return [where for where in differences(ours, theirs) if "/watchdog:" not in where]


def make_place(folder: Path, steps: int = 80) -> Place:
    """It makes the folder, and trains the undisturbed run in it, as `surefoot train` does on two ranks."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "surefoot").write_text(WRAPPER.format(python=sys.executable))
    (programs / "surefoot").chmod(0o755)
    write_corpus(folder / "corpus")
    (folder / "undisturbed.toml").write_text(CONFIG.format(steps=steps))
    environment = {
        **{name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
        "PYTHONPATH": str(ROOT),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    place = Place(folder, environment)
    code = place.run(
        "surefoot", "train", "undisturbed.toml", "--num-accelerators", "2", log="undisturbed.log"
    )
    assert code == 0, place.log("undisturbed.log")
    return place
