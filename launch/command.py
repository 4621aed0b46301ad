"""This module makes the `deepspeed` command line of a run, purely from options and facts about this machine."""

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.hosts import Slots
from launch.passed_on import check_for_deepspeed
from pretrain.config.as_read import AsRead
from pretrain.config.loader import parse_value
from pretrain.errors import ConfigurationError

MODULE = "pretrain"
"""Every rank runs this module."""
REMOTE_SHELL_LAUNCHER = "pdsh"
"""This launcher hands its command to a shell on each host; it is DeepSpeed's default."""


@dataclass(frozen=True)
class Machine:
    """The command depends on these facts besides the options."""

    accelerators: int
    """This machine has so many devices; with 0 ranks compute on the CPU."""
    visible_devices: str | None
    """This is `CUDA_VISIBLE_DEVICES`, or None where it is not set."""
    free_port: int
    """Nothing listens on this TCP port."""
    names: frozenset[str] = frozenset({"localhost", "127.0.0.1"})
    """A hostfile may call this machine by any of these names."""
    programs: frozenset[str] = frozenset({"pdsh", "srun", "mpirun", "numactl"})
    """These programs that start ranks, or bind them, are here."""
    passed_on: tuple[str, ...] = ()
    """These variables are set here, and ranks on other hosts need them as well."""
    allocated_tasks: int | None = None
    """The Slurm allocation whose shell this is has so many tasks."""


@dataclass(frozen=True)
class LaunchOptions:
    """The user asked this of `surefoot train`."""

    config: Path
    overrides: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    """Every rank gets these options of its own; they hold no spaces."""
    num_accelerators: int | None = None
    """So many ranks run on this machine, or through a scheduler; None asks for the tasks of the allocation, all
    accelerators of this machine, or TP x PP ranks on the CPU."""
    hostfile: Path | None = None
    slots: Slots | None = None
    """These hosts are left of the hostfile after `include` and `exclude`."""
    include: str = ""
    exclude: str = ""
    master_addr: str = ""
    master_port: int | None = None
    launcher: str = REMOTE_SHELL_LAUNCHER
    ssh_port: int | None = None
    extra: tuple[str, ...] = ()
    """These words are passed on to `deepspeed`, `srun` or `mpirun` as they stand; see `launch.passed_on`."""

    @property
    def by_scheduler(self) -> bool:
        """It is true where `srun` or `mpirun` starts the ranks, and not DeepSpeed's launcher."""
        return self.launcher != REMOTE_SHELL_LAUNCHER


@dataclass(frozen=True)
class Command:
    """A command says what to start, and what it was made from."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """These variables are added to the environment; an empty value removes one."""
    master_port: int
    world_size: int


def build_command(options: LaunchOptions, machine: Machine, model_parallel: int) -> Command:
    """It returns the command for one machine or for the hosts of a hostfile.

    `model_parallel` is TP x PP: a machine without accelerators starts so many ranks when no number is given. The
    function raises ConfigurationError where the devices do not suffice.
    """
    check_for_deepspeed(options.extra, machine.programs)
    port = options.master_port or machine.free_port
    if options.slots is None:
        count = rank_count(options, machine, model_parallel)
        resources, environment = local_resources(count, machine)
        user_arguments = [str(options.config), *set_options(options.overrides), *options.arguments]
    else:
        count = sum(len(numbers) for numbers in options.slots.values())
        resources, environment = list(host_resources(options, machine)), {}
        user_arguments = list(remote_arguments(options))
    launcher = (sys.executable, "-m", "deepspeed.launcher.runner")
    common = (f"--master_port={port}", "--no_local_rank", "--log_level=critical", *options.extra)
    argv = (*launcher, *resources, *common, "--module", MODULE, *user_arguments)
    return Command(argv, environment, port, count)


def rank_count(options: LaunchOptions, machine: Machine, model_parallel: int) -> int:
    """It returns the number of ranks on this machine, and raises ConfigurationError when it has fewer devices."""
    visible = visible_numbers(machine)
    available = machine.accelerators if visible is None else len(visible)
    count = options.num_accelerators or available or model_parallel
    if machine.accelerators and count > available:
        raise ConfigurationError(f"--num-accelerators {count}: this machine offers {available}")
    return count


def visible_numbers(machine: Machine) -> list[str] | None:
    """It returns the devices of CUDA_VISIBLE_DEVICES, or None where that does not narrow anything."""
    if not machine.accelerators or not machine.visible_devices:
        return None
    numbers = machine.visible_devices.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise ConfigurationError(
            f"CUDA_VISIBLE_DEVICES={machine.visible_devices}: DeepSpeed's launcher understands numbers only; "
            "for example CUDA_VISIBLE_DEVICES=0,1"
        )
    return numbers


def local_resources(count: int, machine: Machine) -> tuple[list[str], dict[str, str]]:
    """It returns options and environment for `count` ranks on this machine.

    DeepSpeed drops CUDA_VISIBLE_DEVICES as soon as a number of accelerators is given, so only one of them
    is. A default hostfile, /job/hostfile, is kept out: this run was meant for one machine.
    """
    here = ["--hostfile="]
    if visible := visible_numbers(machine):
        return here, {"CUDA_VISIBLE_DEVICES": ",".join(visible[:count])}
    environment = {} if machine.accelerators else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return [*here, f"--num_accelerators={count}"], environment


def host_resources(options: LaunchOptions, machine: Machine) -> Iterator[str]:
    """It yields the options for the hosts of a hostfile."""
    yield f"--hostfile={options.hostfile}"
    yield f"--launcher={REMOTE_SHELL_LAUNCHER}"
    if options.include:
        yield f"--include={options.include}"
    if options.exclude:
        yield f"--exclude={options.exclude}"
    if options.master_addr:
        yield f"--master_addr={options.master_addr}"
    if options.ssh_port:
        yield f"--ssh_port={options.ssh_port}"
    hosts = set(options.slots or ())
    if len(hosts) == 1 and not hosts & machine.names:
        yield "--force_multi"  # DeepSpeed starts the ranks of a single host here, whatever host that is


def remote_arguments(options: LaunchOptions) -> Iterator[str]:
    """It yields the arguments of the ranks, safe from the shell that pdsh runs them in."""
    config = str(options.config)
    if re.search(r"\s", config):
        raise ConfigurationError(f"{config}: with pdsh the path of the configuration cannot hold spaces")
    overrides = set_options(plain_override(text) for text in options.overrides)
    for argument in (config, *overrides, *options.arguments):
        yield shlex.quote(argument).replace("%", "%%")  # pdsh expands %h, %n and %u


def as_read_argument(read: AsRead) -> str:
    """It returns what the ranks are told about the settings that were read here."""
    return f"--as-read={read}"


def set_options(overrides: Iterable[str]) -> Iterator[str]:
    """It yields the words that hand these overrides on."""
    for override in overrides:
        yield from ("--set", override)


def plain_override(override: str) -> str:
    """It returns an override that means the same, in printable ASCII without spaces.

    DeepSpeed would wrap spaces in quotes of its own, and what becomes of other characters is up to the locale of each
    host.
    """
    key, _, value = override.partition("=")
    return f"{key.strip()}={inline_toml(parse_value(value.strip()))}"


def inline_toml(value: Any) -> str:
    """It writes a TOML value on one line without spaces."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{quoted(key)}={inline_toml(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(inline_toml(entry) for entry in value) + "]"
    if isinstance(value, str):
        return quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "T")


def quoted(text: str) -> str:
    """It writes a TOML string in which all but printable ASCII, and the space, is escaped."""
    escaped = (char if "!" <= char <= "~" and char not in '"\\' else f"\\U{ord(char):08X}" for char in text)
    return f'"{"".join(escaped)}"'
