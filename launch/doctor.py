"""`surefoot doctor` looks for what would break a run on this machine."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from launch.children import child_environment
from launch.hosts import environment_file_problems, environment_files, read_hostfile
from launch.machine import this_machine
from launch.plan_report import print_rows
from pretrain.errors import ConfigurationError
from pretrain.runtime.libraries import (
    find_apex,
    find_flash_attention,
    find_transformer_engine,
    installed_version,
)
from pretrain.runtime.units import in_units

PACKAGES = ("surefoot", "torch", "deepspeed", "megatron-core", "webdataset", "sentencepiece", "tensorboard")
GIB = 2**30
DISK_NEEDED, DISK_WANTED = 1 * GIB, 20 * GIB
SHARED_MEMORY_NEEDED, SHARED_MEMORY_WANTED = GIB // 16, 1 * GIB
PROBE_SECONDS = 180.0
SSH_SECONDS = 5


class Level(StrEnum):
    """A level says how much a finding matters."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    """A finding of this level breaks a run."""


@dataclass(frozen=True)
class Finding:
    """A finding is one thing that was looked at."""

    name: str
    level: Level
    text: str


Findings = Iterator[Finding]


def doctor(hostfile: Path | None, folder: Path, as_json: bool) -> int:
    """It prints all findings and returns the exit code, which is 2 when one of them would break a run."""
    findings = list(examine(hostfile, folder))
    findings.append(verdict(findings))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print_rows((finding.name, described(finding)) for finding in findings)
    faulty = any(finding.level is Level.FAULT for finding in findings)
    return ConfigurationError.exit_code if faulty else 0


def verdict(findings: Sequence[Finding]) -> Finding:
    """It sums up what was found."""
    named = {level: [found.name for found in findings if found.level is level] for level in Level}
    words = [
        f"{len(names)} {level}{'s' if len(names) > 1 else ''} ({', '.join(names)})"
        for level in (Level.FAULT, Level.WARNING)
        if (names := named[level])
    ]
    if named[Level.FAULT]:
        return Finding("verdict", Level.FAULT, f"a run would break here: {', '.join(words)}")
    text = "nothing here would break a run" + (f", but mind {words[0]}" if words else "")
    return Finding("verdict", Level.OK, text)


def described(finding: Finding) -> str:
    """It returns the text of a finding, with its level in front unless all is well."""
    return finding.text if finding.level is Level.OK else f"{finding.level.upper()}: {finding.text}"


def examine(hostfile: Path | None, folder: Path) -> Findings:
    """It looks at everything, the quick looks first."""
    yield from versions()
    yield accelerators()
    yield from libraries()
    yield from tools()
    yield room("disk", nearest_folder(folder), DISK_NEEDED, DISK_WANTED)
    yield room("shared memory", Path("/dev/shm"), SHARED_MEMORY_NEEDED, SHARED_MEMORY_WANTED)
    yield from variables_for_hosts()
    if hostfile is not None:
        yield from hosts(hostfile)
    yield from self_test()
    yield from deepspeed_report()


def versions() -> Findings:
    """It tells the versions of Python and of the packages that a run needs."""
    yield Finding("python", Level.OK, f"{sys.version.split()[0]} at {sys.executable}")
    for package in PACKAGES:
        found = installed_version(package)
        level = Level.FAULT if found == "unknown" and package != "surefoot" else Level.OK
        yield Finding(package, level, "not installed" if level is Level.FAULT else found)


def accelerators() -> Finding:
    """It counts the accelerators of this machine."""
    count = this_machine().accelerators
    text = f"{count}" if count else "none: ranks compute on the CPU, which is for trying things out"
    return Finding("accelerators", Level.OK, text)


def libraries() -> Findings:
    """It tells which optional kernels are here: their absence breaks nothing, a wrong apex deserves a word."""
    apex = find_apex()
    confusing = not apex.usable and apex.description != "not installed"
    yield Finding("apex", Level.WARNING if confusing else Level.OK, apex.description)
    yield Finding("transformer engine", Level.OK, find_transformer_engine().description)
    yield Finding("flash-attn", Level.OK, f"{find_flash_attention().description} (torch has its own)")


def tools() -> Findings:
    """It looks for compilers, since DeepSpeed compiles small extensions when it first needs them."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))), None)
    missing = "no C++ compiler: DeepSpeed cannot build its extensions"
    yield Finding("compiler", Level.OK if compiler else Level.WARNING, compiler or missing)
    ninja = shutil.which(
        "ninja", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    )
    missing = "not found: DeepSpeed cannot build its extensions; pip install ninja"
    yield Finding("ninja", Level.OK if ninja else Level.WARNING, ninja or missing)


def room(name: str, folder: Path, needed: int, wanted: int) -> Finding:
    """It compares the free space at `folder` with what a run needs, in bytes."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(name, Level.FAULT, f"{folder}: {error.strerror}")
    level = Level.FAULT if free < needed else Level.WARNING if free < wanted else Level.OK
    text = f"{in_units(free)} free at {folder}"
    return Finding(name, level, text if level is Level.OK else f"{text}; {in_units(wanted)} are wanted")


def nearest_folder(path: Path) -> Path:
    """It returns the deepest folder above `path` that exists already."""
    absolute = path.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if folder.exists())


def variables_for_hosts() -> Findings:
    """It reads `.deepspeed_env` where DeepSpeed's launcher looks for it."""
    for path in environment_files():
        problems = [str(problem) for problem in environment_file_problems(path)]
        yield Finding(
            path.name, Level.FAULT if problems else Level.OK, "; ".join(problems) or f"{path} is sound"
        )


def hosts(hostfile: Path) -> Findings:
    """It looks at the hostfile and at pdsh, and tries to reach each host."""
    try:
        slots = read_hostfile(hostfile)
    except ConfigurationError as error:
        yield Finding("hostfile", Level.FAULT, str(error))
        return
    total = sum(len(numbers) for numbers in slots.values())
    yield Finding("hostfile", Level.OK, f"{len(slots)} hosts with {total} slots")
    pdsh = shutil.which("pdsh")
    missing = "not found; install it, or choose another --launcher"
    yield Finding("pdsh", Level.OK if pdsh else Level.FAULT, pdsh or missing)
    for host in slots:
        command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_SECONDS}", host, "true"]
        result, output = probe(command, seconds=3 * SSH_SECONDS)
        reached = "reached by ssh" if result == 0 else f"not reached by ssh: {last_line(output)}"
        yield Finding(host, Level.OK if result == 0 else Level.FAULT, reached)


def self_test() -> Findings:
    """It starts two ranks on gloo, in processes of their own, and tells what torch sees there."""
    result, output = probe([sys.executable, "-m", "pretrain.runtime.selftest"])
    try:
        seen: dict[str, Any] = json.loads(last_line(output))
    except ValueError:
        yield Finding("two ranks", Level.FAULT, f"the self-test ended with {result}: {last_line(output)}")
        return
    problem = seen["collective"]
    yield Finding("two ranks", Level.FAULT if problem else Level.OK, problem or "sum over gloo is right")
    yield from devices_agree(seen["devices"], seen["cuda"])
    yield Finding("kernels", Level.OK, seen["kernels"])


def devices_agree(devices: list[str], cuda: str) -> Findings:
    """It tells whether torch sees the accelerators that the machine has."""
    present = this_machine().accelerators
    if devices:
        yield Finding("devices", Level.OK, f"{', '.join(sorted(set(devices)))} with CUDA {cuda}")
    elif present and shutil.which("nvidia-smi"):
        built = f"built for CUDA {cuda}" if cuda else "a build for CPUs"
        yield Finding("devices", Level.FAULT, f"torch is {built} and sees none of {present} accelerators")


def deepspeed_report() -> Findings:
    """It tells what `ds_report` says, without its frame: facts, and the extensions that cannot be built."""
    result, output = probe([sys.executable, "-m", "deepspeed.env_report"])
    if result != 0:
        yield Finding("ds_report", Level.FAULT, f"ended with {result}: {last_line(output)}")
        return
    lines = re.sub(r"\x1b\[\d+m", "", output).splitlines()
    unbuildable = [line.split()[0] for line in lines if line.rstrip().endswith("[NO]")]
    facts = [line for line in lines if re.match(r"(nvcc|torch|deepspeed) (cuda )?(version|info)", line)]
    yield Finding("ds_report", Level.OK, "; ".join(re.sub(r" \.+ ", " ", fact) for fact in facts))
    if unbuildable:
        yield Finding("ds extensions", Level.OK, f"cannot be built here: {', '.join(unbuildable)}")


def probe(command: list[str], seconds: float = PROBE_SECONDS) -> tuple[int, str]:
    """It returns code and output of a command; the code is -1 when it took too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, env=child_environment()
        )
    except subprocess.TimeoutExpired:
        return -1, f"no answer within {seconds:.0f} seconds"
    except OSError as error:
        return -1, f"{command[0]}: {error.strerror}"
    return done.returncode, done.stdout if done.returncode == 0 else done.stdout + done.stderr


def last_line(text: str) -> str:
    """It returns the last line of what a command said."""
    return text.strip().splitlines()[-1] if text.strip() else "no output"
