"""These are the commands of `surefoot`: their options, and what each of them calls."""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_pipeline.paths import path_argument
from data_pipeline.shown import CommandLine
from launch.children import become
from launch.command import REMOTE_SHELL_LAUNCHER, Command, LaunchOptions, as_read_argument
from launch.completion import script
from launch.doctor import doctor
from launch.hosts import check_address, check_folder, read_hostfile, select_slots
from launch.inspect import inspect
from launch.machine import this_machine
from launch.model_commands import MODULE, model_commands
from launch.options import add_config, add_launch, add_supervision, positive
from launch.plan_report import plan_document, plan_rows, print_rows, problem_document
from launch.preflight import check_launch
from launch.process import note, run_to_end
from launch.rehearse import rehearse
from launch.run_progress import has_resumed, records
from launch.schedulers import launch_command
from launch.step_report import report_step, step_document, step_rows, step_warnings
from launch.supervise import Policy, Supervisor
from launch.version import PrintVersion
from pretrain.checkpoint.tag import requested
from pretrain.config.as_read import AsRead, keep_copy
from pretrain.config.loader import config_of, read_settings
from pretrain.config.run import RunConfig
from pretrain.errors import ConfigurationError, SurefootError
from pretrain.fault_injection.plan import FAULTS
from pretrain.plan.devices import DEVICES
from pretrain.plan.plan import plan
from pretrain.plan.prepared import data_problems, missing_data
from pretrain.plan.profiled_steps import ProfiledSteps
from pretrain.plan.reading import read_plan
from pretrain.run_folder import SUPERVISED_CONFIG
from pretrain.runtime.startup import check_current_folder, open_standard_streams

SUPERVISION = ("hang_after", "relaunches", "wait_for_hosts")
"""These options of `surefoot train` are keys of `Policy`."""


def run(words: list[str]) -> int:
    """It runs a command line and returns the exit code."""
    open_standard_streams()
    check_current_folder()
    if words[:1] == ["prepare"]:
        become("data_pipeline", words[1:])
    if words and words[0] in model_commands():
        become(MODULE, words)
    ours, extra = split_extra(words)
    options = build_parser().parse_args(ours)
    options.extra = extra
    try:
        return int(options.command(options))
    except SurefootError as error:
        if getattr(options, "json", False) and isinstance(error, ConfigurationError):
            print(json.dumps(problem_document(str(error), error.problems), indent=2))
        else:
            note(str(error))
        return error.exit_code
    except OSError as error:
        if error.filename is None:
            raise
        note(f"{error.filename}: {error.strerror}")  # another user's run folder, above all
        return ConfigurationError.exit_code


def split_extra(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """It returns our words, and what stands after `--` for DeepSpeed's launcher."""
    if "--" not in words:
        return words, ()
    cut = words.index("--")
    return words[:cut], tuple(words[cut + 1 :])


def check(options: argparse.Namespace) -> int:
    """It prints the plan of a configuration and what DeepSpeed would be given."""
    config, planned = read_plan(options.config, options.set, options.world_size)
    planned = replace(planned, warnings=(*planned.warnings, *missing_data(config)))
    if problems := list(data_problems(config)):
        raise ConfigurationError("the data does not fit this configuration", problems)
    if options.rate and options.device is None:
        raise ConfigurationError(f"--rate {options.rate[0]}: only with --device")
    step = report_step(config, planned, options.device, options.rate)
    planned = replace(planned, warnings=(*planned.warnings, *step_warnings(planned, step)))
    if options.json:
        print(json.dumps(plan_document(planned) | step_document(config, planned, step), indent=2))
        return 0
    rows = (*plan_rows(config, planned), *step_rows(config, planned, step))
    print_rows([*rows, ("deepspeed", json.dumps(planned.deepspeed))])
    for warning in planned.warnings:
        note(f"warning: {warning}")
    return 0


def train(options: argparse.Namespace) -> int:
    """It checks the configuration, starts all ranks and stays until they have ended."""
    table, problems = read_settings(options.config, options.set)
    config = config_of(options.config, table, problems)
    copy = config.run_folder / SUPERVISED_CONFIG if options.supervise else None
    as_read = as_read_argument(AsRead.of(table, copy))
    if options.profile:
        ProfiledSteps.parse(options.profile, config.run.steps)
    wanted = launch_options(options)
    wanted = replace(wanted, arguments=(*wanted.arguments, as_read))
    model_parallel = config.parallel.model_size
    known = len(records(config.run_folder)) if options.resume else 0

    def build() -> Command:
        """Once a launch has resumed from the checkpoint that was asked for, further ones go on from the newest."""
        done = options.resume and has_resumed(config.run_folder, known, options.resume)
        orders = replace(wanted, arguments=(*profile_arguments(options), as_read)) if done else wanted
        keep_copy(config.run_folder, table)
        return launch_command(orders, this_machine(), model_parallel)

    command = launch_command(wanted, this_machine(), model_parallel)
    planned = plan(config, command.world_size)
    policy = supervision(options, config)
    check_launch(command, wanted)
    for warning in planned.warnings:
        note(f"warning: {warning}")
    if policy:
        return Supervisor(config.run_folder, config.run.steps, wanted, build, policy).run()
    return run_to_end(command, wanted, config.run_folder, config.run.steps)


def supervision(options: argparse.Namespace, config: RunConfig) -> Policy | None:
    """It returns how `--supervise` is to go about it, or None without it."""
    given = {name: value for name in SUPERVISION if (value := getattr(options, name)) is not None}
    if options.supervise:
        return Policy(**{"hang_after": 2 * config.parallel.timeout_seconds, **given})
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigurationError(f"{words}: only with --supervise")
    return None


def launch_options(options: argparse.Namespace) -> LaunchOptions:
    """It returns the options of `surefoot train` with the hostfile read."""
    if options.hostfile is None and (options.include or options.exclude):
        raise ConfigurationError(
            "--include and --exclude choose among the hosts of a --hostfile; there is none"
        )
    check_address(options.master_addr)
    slots = None
    if options.hostfile is not None:
        slots = select_slots(read_hostfile(options.hostfile), options.include, options.exclude)
        if options.launcher == REMOTE_SHELL_LAUNCHER:
            check_folder(os.getcwd())
    return LaunchOptions(
        config=options.config,
        overrides=tuple(options.set),
        num_accelerators=options.num_accelerators,
        hostfile=options.hostfile,
        slots=slots,
        include=options.include,
        exclude=options.exclude,
        master_addr=options.master_addr,
        master_port=options.master_port,
        launcher=options.launcher,
        ssh_port=options.ssh_port,
        extra=options.extra,
        arguments=(*resume_arguments(options), *profile_arguments(options)),
    )


def resume_arguments(options: argparse.Namespace) -> Iterator[str]:
    """It yields what the ranks are told about the checkpoint to begin with."""
    tag, force = getattr(options, "resume", None), getattr(options, "force_condemned", False)
    if force and tag is None:
        raise ConfigurationError("--force-condemned: only with --resume TAG")
    if tag is not None:
        yield f"--resume={requested(tag)}"
    if force:
        yield "--force-condemned"


def profile_arguments(options: argparse.Namespace) -> Iterator[str]:
    """It yields what the ranks are told about steps to profile."""
    if steps := getattr(options, "profile", None):
        yield f"--profile={steps}"


def build_parser() -> argparse.ArgumentParser:
    """It declares all commands and their options."""
    parser = CommandLine(
        prog="surefoot",
        description="Pretrain deep Transformers on DeepSpeed and Megatron-core.",
        epilog="exit codes: 0 finished, 2 configuration or command line, 3 data, 4 no usable checkpoint, "
        "5 diverged, 6 lost a peer, 75 preempted and resumable",
    )
    parser.add_argument("--version", action=PrintVersion, nargs=0, help="print versions and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("prepare", help="turn raw files into training data; see `surefoot prepare --help`")
    add_check(commands.add_parser("check", help="print what a configuration amounts to, or what is wrong"))
    add_doctor(commands.add_parser("doctor", help="look for what would break a run on this machine"))
    add_train(commands.add_parser("train", help="train on this machine or on the hosts of a hostfile"))
    add_rehearse(
        commands.add_parser("rehearse", help="train with a planted fault, beside an undisturbed twin")
    )
    add_inspect(
        commands.add_parser("inspect", help="tell the story of a run: alarms, rollbacks, checkpoints")
    )
    for name, line in model_commands().items():
        commands.add_parser(name, help=line.replace("%", "%%"))
    completion = commands.add_parser("completion", help="print what makes a shell complete our commands")
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(command=lambda options: print(script(options.shell, parser)) or 0)
    return parser


def add_check(parser: argparse.ArgumentParser) -> None:
    """It declares `surefoot check`."""
    add_config(parser)
    parser.add_argument(
        "--world-size", type=positive, metavar="N", help="number of ranks (default: tensor x pipeline)"
    )
    parser.add_argument(
        "--device", choices=DEVICES, help="estimate the time of a step on such devices, from declared rates"
    )
    parser.add_argument(
        "--rate",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another rate of device or links, such as gpus_per_node=4; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=check)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """It declares `surefoot doctor`."""
    parser.add_argument("--hostfile", type=path_argument, metavar="FILE", help="hostfile to check")
    parser.add_argument(
        "--folder",
        type=path_argument,
        default=Path("runs"),
        help="folder of the runs, whose disk is looked at",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=lambda options: doctor(options.hostfile, options.folder, options.json))


def inspect_run(options: argparse.Namespace) -> int:
    """It tells the story of a run, or lists the tensors of a checkpoint, for which it becomes another program."""
    if options.weights:
        become(MODULE, ["weights", str(options.run), *(["--json"] if options.json else [])])
    return inspect(options.run, options.json)


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """It declares `surefoot inspect`."""
    parser.add_argument(
        "run",
        type=path_argument,
        metavar="RUN",
        help="folder of the run, such as runs/NAME; with --weights also RUN@TAG or the folder of a checkpoint",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--weights",
        action="store_true",
        help="list the tensors of a checkpoint instead: shapes, norms, digests",
    )
    parser.set_defaults(command=inspect_run)


def add_train(parser: argparse.ArgumentParser) -> None:
    """It declares `surefoot train`."""
    add_config(parser)
    add_launch(parser, "surefoot train CONFIG [options] [-- options of the launcher]")
    parser.add_argument(
        "--profile",
        metavar="STEPS",
        help="write a trace of these steps into the run folder, such as 20 or 20-22, and tell where a step goes",
    )
    add_supervision(parser.add_argument_group("supervision"))
    parser.set_defaults(command=train)


def add_rehearse(parser: argparse.ArgumentParser) -> None:
    """It declares `surefoot rehearse`."""
    add_config(parser)
    add_launch(parser, "surefoot rehearse CONFIG --fault NAME[@STEP] [options] [-- options of the launcher]")
    parser.add_argument(
        "--fault",
        required=True,
        metavar="NAME[@STEP[+STEPS]]",
        help=f"what goes wrong, from which step on, for how many steps: {', '.join(FAULTS)}",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(
        command=lambda options: rehearse(launch_options(options), options.fault, options.json)
    )
