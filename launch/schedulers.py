"""This module chooses the launcher of a run, and makes the command lines of `srun` and `mpirun`.

It is as pure as `launch.command`, which makes those of `deepspeed`.

Both start the ranks themselves and tell them their places, so DeepSpeed's launcher is not needed in between. (It would
take them away from the module that we ask for, and look for hosts over ssh, which schedulers often forbid.)
"""

import sys
from collections.abc import Callable, Iterator, Mapping

from launch.command import (
    MODULE,
    REMOTE_SHELL_LAUNCHER,
    Command,
    LaunchOptions,
    Machine,
    build_command,
    rank_count,
    set_options,
)
from launch.hosts import Slots
from launch.passed_on import check_for_scheduler
from launch.ranks import LAUNCH
from pretrain.errors import ConfigurationError

PROGRAMS = {"slurm": "srun", "openmpi": "mpirun"}
"""Launcher -> the program that starts ranks for it."""
UNKNOWN = ("mpich", "impi", "mvapich")
"""DeepSpeed has these launchers, too. Their ranks do not learn their places in a way that is known here."""
LAUNCHERS = (REMOTE_SHELL_LAUNCHER, *PROGRAMS, *UNKNOWN)
WAIT_SECONDS = 120
"""Tasks of `srun` have so long to end once one of them has ended; those that wait for it would do so much longer."""
MPIRUN_SECONDS = 5
"""`mpirun` always waits so long, twice, when it ends ranks because one has ended with a code; by default for one."""


def launch_command(options: LaunchOptions, machine: Machine, model_parallel: int) -> Command:
    """It returns the command of the launcher that the user has chosen.

    Raises:
        ConfigurationError: it cannot start what was asked for.
    """
    check_launcher(options, machine)
    build = scheduler_command if options.by_scheduler else build_command
    return build(options, machine, model_parallel)


def check_launcher(options: LaunchOptions, machine: Machine) -> None:
    """It raises ConfigurationError, with the words to type, where this launcher cannot start anything."""
    name = options.launcher
    if name in UNKNOWN:
        raise ConfigurationError(
            f"--launcher {name}: MPICH, Intel MPI and MVAPICH are not supported; take --launcher slurm, openmpi or "
            "pdsh, or start `srun python -m pretrain CONFIG` yourself"
        )
    program = PROGRAMS.get(name)
    if program and program not in machine.programs:
        raise ConfigurationError(
            f"--launcher {name}: there is no {program} here; install it, or load its module"
        )
    if program and options.ssh_port:
        example = "" if name == "slurm" else "; for example -- --mca plm_rsh_args '-p 2222'"
        raise ConfigurationError(
            f"--ssh-port: not with --launcher {name}, which reaches hosts its own way{example}"
        )


def scheduler_command(options: LaunchOptions, machine: Machine, model_parallel: int) -> Command:
    """It returns the command that starts the ranks through Slurm or Open MPI.

    The ranks derive a port that is free of other launches by themselves where none is asked for; it is 0 in the
    command then. The function raises ConfigurationError where the launcher cannot do what was asked.
    """
    check_for_scheduler(options.launcher, options.extra)
    words = WORDS[options.launcher]
    if options.slots is not None:
        check_whole_hosts(options.slots)
        count = sum(map(len, options.slots.values()))
    else:
        count = ranks_without_hosts(options, machine, model_parallel)
    ranks = (sys.executable, "-u", "-m", MODULE, str(options.config), *set_options(options.overrides))
    argv = (*words(options, machine, count), *options.extra, *ranks, *options.arguments)
    return Command(argv, meeting_point(options), options.master_port or 0, count)


def ranks_without_hosts(options: LaunchOptions, machine: Machine, model_parallel: int) -> int:
    """It returns how many ranks are wanted: the user, the allocation or this machine says so, in this order.

    It raises ConfigurationError where nobody does.
    """
    if count := options.num_accelerators or machine.allocated_tasks:
        return count
    if options.launcher == "slurm":
        raise ConfigurationError(
            "--launcher slurm: how many ranks? There is no allocation here to tell; "
            f"for example --num-accelerators {model_parallel}, or first salloc --ntasks={model_parallel}"
        )
    return rank_count(options, machine, model_parallel)


def check_whole_hosts(slots: Slots) -> None:
    """It raises ConfigurationError where some slots of a host are left out: ranks always begin with the first."""
    for host, numbers in slots.items():
        if list(numbers) != list(range(len(numbers))):
            raise ConfigurationError(
                f"{host}: srun and mpirun cannot be given slots {', '.join(map(str, numbers))} alone; "
                f"with {host}:{','.join(map(str, range(len(numbers))))} they can"
            )


def meeting_point(options: LaunchOptions) -> Mapping[str, str]:
    """It returns the variables that say where ranks meet, as far as the user has said so."""
    port = str(options.master_port) if options.master_port else ""
    given = {"MASTER_ADDR": options.master_addr or first_host(options), "MASTER_PORT": port}
    return {name: value for name, value in given.items() if value}


def first_host(options: LaunchOptions) -> str:
    """It returns the host of rank 0 where only we know it: mpirun does not tell its ranks, srun does."""
    hosts = list(options.slots or ())
    return hosts[0] if options.launcher == "openmpi" and len(hosts) > 1 else ""


def srun_words(options: LaunchOptions, machine: Machine, count: int) -> Iterator[str]:
    """It yields `srun` and its options. Tasks of a step are as many on each node."""
    yield from ("srun", f"--ntasks={count}", "--export=ALL", f"--wait={WAIT_SECONDS}")
    if options.slots is not None:
        sizes = {len(numbers) for numbers in options.slots.values()}
        if len(sizes) > 1:
            given = ", ".join(f"{host} slots={len(numbers)}" for host, numbers in options.slots.items())
            raise ConfigurationError(
                f"--launcher slurm: each host must have the same number of slots, not {given}"
            )
        yield f"--nodes={len(options.slots)}"
        yield f"--nodelist={','.join(options.slots)}"
        yield f"--ntasks-per-node={sizes.pop()}"


def mpirun_words(options: LaunchOptions, machine: Machine, count: int) -> Iterator[str]:
    """It yields `mpirun` and its options.

    Ranks may use all cores: bound to one each, as is mpirun's habit, the threads that write checkpoints would stand in
    the way of training. As soon as one rank has ended with a code, mpirun ends the others: they need time for that.
    Other hosts are given variables by name.
    """
    yield from ("mpirun", "-n", str(count), "--bind-to", "none", "--mca", "odls_base_sigkill_timeout")
    yield str(MPIRUN_SECONDS)
    if options.slots is not None:
        yield from ("--host", ",".join(f"{host}:{len(numbers)}" for host, numbers in options.slots.items()))
    for name in (
        LAUNCH,
        "PYTHONPATH",
        "PYTHONSAFEPATH",
        "PYTHONUTF8",
        *machine.passed_on,
        *meeting_point(options),
    ):
        yield from ("-x", name)


WORDS: Mapping[str, Callable[[LaunchOptions, Machine, int], Iterator[str]]] = {
    "slurm": srun_words,
    "openmpi": mpirun_words,
}
"""Launcher -> its program with options."""
