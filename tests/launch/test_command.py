"""The command line of a launch is understood by DeepSpeed and stays intact behind a remote shell."""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner
from deepspeed.launcher.runner import encode_world_info, parse_args
from hypothesis import example, given
from hypothesis import strategies as st

from launch.command import Command, LaunchOptions, Machine, build_command, inline_toml
from launch.hosts import Slots
from launch.machine import count_accelerators, free_port
from pretrain.config.loader import parse_value
from pretrain.errors import ConfigurationError

CPU = Machine(accelerators=0, visible_devices=None, free_port=23456)
GPUS = Machine(accelerators=8, visible_devices=None, free_port=23456)
CONFIG = Path("configs/gpt/demo.toml")
HOSTS = {"worker-0": (0, 1), "worker-1": (0, 1)}


def understood(command: Command) -> argparse.Namespace:
    """It returns the options as DeepSpeed's launcher parses them."""
    assert command.argv[:3] == (sys.executable, "-m", "deepspeed.launcher.runner")
    return parse_args(list(command.argv[3:]))


def test_one_machine() -> None:
    options = LaunchOptions(CONFIG, ("run.steps=3", 'run.name="a b"'), num_accelerators=2)
    command = build_command(options, CPU, model_parallel=1)
    args = understood(command)
    assert (args.num_gpus, args.master_port, args.module) == (2, 23456, True)
    assert args.user_script == "pretrain"
    assert args.user_args == [str(CONFIG), "--set", "run.steps=3", "--set", 'run.name="a b"']
    assert args.hostfile == "", "a default hostfile must not turn this into a run on many hosts"
    assert args.no_local_rank
    assert command.environment["DS_ACCELERATOR"] == "cpu"
    assert command.world_size == 2


@pytest.mark.parametrize(("machine", "ranks"), [(CPU, 4), (GPUS, 8)])
def test_default_number_of_ranks(machine: Machine, ranks: int) -> None:
    assert build_command(LaunchOptions(CONFIG), machine, model_parallel=4).world_size == ranks


def test_too_many_ranks_for_the_accelerators() -> None:
    with pytest.raises(ConfigurationError, match="16: this machine offers 8"):
        build_command(LaunchOptions(CONFIG, num_accelerators=16), GPUS, 1)


def test_visible_devices_are_kept() -> None:
    """DeepSpeed would drop them next to a number of accelerators and take devices 0 and 1."""
    machine = Machine(8, "4,5,6", 23456)
    command = build_command(LaunchOptions(CONFIG, num_accelerators=2), machine, 1)
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert understood(command).num_gpus == -1
    assert build_command(LaunchOptions(CONFIG), machine, 1).world_size == 3
    with pytest.raises(ConfigurationError, match="numbers only"):
        build_command(LaunchOptions(CONFIG), Machine(8, "GPU-1234", 23456), 1)


def test_hostfile() -> None:
    options = LaunchOptions(
        CONFIG,
        hostfile=Path("hosts"),
        slots=HOSTS,
        include="worker-0@worker-1",
        master_addr="10.0.0.1",
        master_port=1234,
        ssh_port=2222,
        extra=("--bind_cores_to_rank",),
    )
    command = build_command(options, GPUS, 1)
    args = understood(command)
    assert (args.hostfile, args.include, args.exclude) == ("hosts", "worker-0@worker-1", "")
    assert (args.master_addr, args.master_port, args.ssh_port) == ("10.0.0.1", 1234, 2222)
    assert args.bind_cores_to_rank
    assert not args.force_multi
    assert command.world_size == 4


@pytest.mark.parametrize(("host", "forced"), [("worker-0", True), ("localhost", False)])
def test_single_remote_host_is_not_mistaken_for_this_machine(host: str, forced: bool) -> None:
    options = LaunchOptions(CONFIG, hostfile=Path("hosts"), slots={host: (0,)})
    assert understood(build_command(options, CPU, 1)).force_multi is forced


OVERRIDES = (
    'data.sources=[{path="a b", weight=0.5}]',
    "run.name=it's",
    'run.name="50%h $HOME `x` \\"q\\""',
    "run.steps=3",
    "run.folder=/tmp/two words",
    "run.name=kr\u00e4he",
    'run.name="\U0001f43e"',
    'run.name="a \U0001f43e b"',
    "run.name=\U0001f43e\u3000b\u00a0c",
    "run.name='a\tb'",
    'run.name="a\\nb \\\\ \\u007f c"',
    'run.name="""a\nb"""',
    "run.name=C:\\x",
    "run.name=%h%n%u;exit&|<>(){}*?~#!",
)


STAND_IN_SSH = """#!/bin/sh
# ssh OPTION... worker-N WORD...: hands the words, joined by spaces, to a shell, as sshd does.
while [ "${1#worker-}" = "$1" ]; do shift; done
shift
exec sh -c "$*"
"""


@pytest.mark.skipif(not shutil.which("pdsh"), reason="pdsh is not installed")
def test_overrides_survive_pdsh_and_the_remote_shell(tmp_path: Path) -> None:
    """The values come out as they were meant, through the real pdsh and a shell on each host."""
    options = LaunchOptions(CONFIG, OVERRIDES, hostfile=Path("hosts"), slots=HOSTS)
    args = understood(build_command(options, CPU, 1))
    runner = PDSHRunner(args, encode_world_info({host: list(slots) for host, slots in HOSTS.items()}))
    argv, _, environment = runner.get_cmd({}, HOSTS)
    ssh, script = tmp_path / "ssh", tmp_path / "echo.py"
    ssh.write_text(STAND_IN_SSH)
    ssh.chmod(0o755)
    script.write_text("import sys, json; print(json.dumps(sys.argv[1:]))")
    words = [sys.executable, str(script), *argv[argv.index("pretrain") + 1 :]]
    done = subprocess.run(
        ["pdsh", "-S", "-N", "-w", "worker-0", *words],
        env={**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        check=True,
        timeout=60,
    )
    arrived = json.loads(done.stdout)
    assert arrived[0] == str(CONFIG)
    values = [parse_value(word.partition("=")[2]) for word in arrived[2::2]]
    assert values == [parse_value(word.partition("=")[2]) for word in OVERRIDES]


VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=("Cs",))),
    ),
    lambda below: st.one_of(
        st.lists(below, max_size=3),
        st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), below, max_size=3),
    ),
    max_leaves=8,
)


@given(VALUES)
@example("a \U0001f43e b")
@example("\"'\\ \n\r\t\x7f\x00$`%h%n")
@example([{"path": "p q", "weight": 2}])
def test_inline_toml_is_plain_ascii_without_spaces_and_means_the_same(value: object) -> None:
    text = inline_toml(value)
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert parse_value(text) == value
    assert shlex.split(shlex.quote(text)) == [text]


@pytest.mark.parametrize("slots", [None, HOSTS])
def test_arguments_of_the_ranks_come_last(slots: Slots | None) -> None:
    arguments = ("--fault", "tev_drift@5+2")
    options = LaunchOptions(CONFIG, ("run.seed=1",), arguments, hostfile=Path("hosts"), slots=slots)
    assert build_command(options, CPU, 1).argv[-5:] == (str(CONFIG), "--set", "run.seed=1", *arguments)


def test_paths_with_spaces_are_refused_behind_pdsh() -> None:
    with pytest.raises(ConfigurationError, match="cannot hold spaces"):
        build_command(LaunchOptions(Path("my run.toml"), slots=HOSTS, hostfile=Path("h")), CPU, 1)


def test_no_driver_no_accelerators(tmp_path: Path) -> None:
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    assert count_accelerators(tmp_path) == 0
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidia1").touch()
    assert count_accelerators(tmp_path) == 2


def test_ports_of_two_launches_differ() -> None:
    """And nobody is given one of them who asks the system for any, between its choice and rank 0."""
    found = {free_port() for _ in range(5)}
    assert len(found) > 1
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert first_given <= 1024 or max(found) < first_given, (
        "where nearly all are given there is no better one"
    )
