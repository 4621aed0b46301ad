"""Options that several commands of `surefoot` have in common, and how their values are read."""

import argparse

from data_pipeline.paths import path_argument
from launch.command import REMOTE_SHELL_LAUNCHER
from launch.schedulers import LAUNCHERS
from launch.supervise import Policy


def add_config(parser: argparse.ArgumentParser) -> None:
    """It declares the configuration and what overrides it."""
    parser.add_argument(
        "config",
        type=path_argument,
        metavar="CONFIG",
        help="TOML file of the run, or the folder of a run: as it was",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a key of the configuration; may be repeated",
    )


def add_launch(parser: argparse.ArgumentParser, usage: str) -> None:
    """It declares where and how ranks are started."""
    parser.usage = usage
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--num-accelerators",
        type=positive,
        metavar="N",
        help="ranks on this machine, or in all under a scheduler (default: the tasks of its allocation, "
        "all accelerators of this machine; without any, tensor x pipeline ranks)",
    )
    where.add_argument(
        "--hostfile", type=path_argument, metavar="FILE", help="hosts, in lines of HOST slots=N"
    )
    parser.add_argument(
        "--include", default="", metavar="HOST[:SLOTS][@...]", help="only these of the hostfile"
    )
    parser.add_argument("--exclude", default="", metavar="HOST[:SLOTS][@...]", help="all but these")
    parser.add_argument("--master-addr", default="", metavar="ADDRESS", help="address of the first host")
    parser.add_argument("--master-port", type=port, metavar="PORT", help="its port (default: a free one)")
    parser.add_argument(
        "--launcher",
        default=REMOTE_SHELL_LAUNCHER,
        choices=LAUNCHERS,
        help="what starts ranks: slurm (srun), openmpi (mpirun) or, with a hostfile, pdsh (default)",
    )
    parser.add_argument(
        "--resume",
        metavar="TAG",
        help="go on from this checkpoint, for example step00001200-a3, in a new lineage",
    )
    parser.add_argument("--force-condemned", action="store_true", help="with --resume: even a condemned one")
    parser.add_argument("--ssh-port", type=port, metavar="PORT", help="port of ssh on the hosts")


def add_supervision(group: argparse._ArgumentGroup) -> None:
    """It declares when launches are ended and made again."""
    group.add_argument(
        "--supervise",
        action="store_true",
        help="launch again when ranks or hosts are lost or hang, until the run's ledger says that it is done",
    )
    group.add_argument(
        "--hang-after",
        type=seconds,
        metavar="SECONDS",
        help="a rank that takes longer for a step hangs; start, save and validation may take 4 times as long "
        "(default: twice parallel.timeout_seconds)",
    )
    group.add_argument(
        "--relaunches",
        type=positive,
        metavar="N",
        help=f"give up after so many without a new checkpoint (default: {Policy.relaunches})",
    )
    group.add_argument(
        "--wait-for-hosts",
        type=seconds,
        metavar="SECONDS",
        help=f"for lost hosts to come back before a relaunch (default: {Policy.wait_for_hosts:.0f})",
    )


def positive(text: str) -> int:
    """It reads an argument that must be a whole number above zero."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def port(text: str) -> int:
    """It reads an argument that must be the number of a TCP port."""
    number = int(text)
    if not 0 < number < 2**16:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535, not {number}")
    return number


def seconds(text: str) -> float:
    """It reads an argument that must be a time above zero."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return number
