"""What stands behind `--` goes to the launcher, as far as it changes nothing of what we know about its ranks."""

from pathlib import Path

import pytest
from deepspeed.launcher.runner import parse_args

from launch.command import LaunchOptions, Machine, build_command
from launch.passed_on import FLAGS, INSTEAD, VALUED
from launch.schedulers import scheduler_command
from pretrain.errors import ConfigurationError

CONFIG = Path("run.toml")
CPU = Machine(accelerators=0, visible_devices=None, free_port=23456)


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (("--num_nodes=3",), "--hostfile and --include"),
        (("--num_nodes", "3"), "--hostfile and --include"),
        (("--num_gpus=1",), "--num-accelerators"),
        (("--num_g", "1"), "--num-accelerators"),
        (("--master_port", "22222"), "--master-port"),
        (("--master_p=22222",), "--master-port"),
        (("--save_pid", "--master_addr=other"), "--master-addr"),
        (("--hostfile", "hosts"), "--hostfile"),
        (("-Hhosts",), "--hostfile"),
        (("-i", "a:0"), "--include"),
        (("--exclude=a",), "--exclude"),
        (("--ssh_port", "2222"), "--ssh-port"),
        (("--launcher", "slurm"), "--launcher"),
    ],
)
def test_what_we_are_told_ourselves_is_not_passed_on(words: tuple[str, ...], instead: str) -> None:
    """Signals would not find the ranks of another port, or on other hosts."""
    with pytest.raises(ConfigurationError, match=rf"^-- -.*: .* before the --, {instead}"):
        build_command(LaunchOptions(CONFIG, extra=words), CPU, 1)


@pytest.mark.parametrize(
    "word",
    ["--module", "--no_ssh", "--no_python", "--autotuning=run", "--force_multi", "other.toml", "--", "-"],
)
def test_what_would_start_something_else_is_refused(word: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"^-- {word}: DeepSpeed's launcher is only given --save_pid"
    ):
        build_command(LaunchOptions(CONFIG, extra=(word,)), CPU, 1)


def test_a_value_may_look_like_an_option() -> None:
    extra = ("--launcher_args", "-H", "-q", "--enable_each_rank_log=logs")
    assert set(extra) <= set(build_command(LaunchOptions(CONFIG, extra=extra), CPU, 1).argv)
    with pytest.raises(ConfigurationError, match="-- --log_level: a value is missing"):
        build_command(LaunchOptions(CONFIG, extra=("--log_level",)), CPU, 1)


def test_ranks_are_bound_by_a_program() -> None:
    extra = ("--bind_cores_to_rank",)
    assert extra[0] in build_command(LaunchOptions(CONFIG, extra=extra), CPU, 1).argv
    without = Machine(0, None, 23456, programs=frozenset())
    with pytest.raises(ConfigurationError, match="no numactl here"):
        build_command(LaunchOptions(CONFIG, extra=extra), without, 1)


def test_deepspeed_has_these_options() -> None:
    values = {"--log_level": "info"}
    given = [word for option in VALUED for word in (option, values.get(option, "1"))]
    parse_args([*FLAGS, *given, "script"])
    numbers = {option: "1" for option in INSTEAD}
    parse_args([*(word for pair in numbers.items() for word in pair), "script"])


@pytest.mark.parametrize(
    ("launcher", "words"),
    [("slurm", ("-n", "3")), ("slurm", ("-n3",)), ("slurm", ("--ntasks=3",)), ("openmpi", ("-np", "3"))],
)
def test_schedulers_start_as_many_ranks_as_were_planned(launcher: str, words: tuple[str, ...]) -> None:
    options = LaunchOptions(CONFIG, launcher=launcher, num_accelerators=2, extra=words)
    with pytest.raises(ConfigurationError, match=rf"^-- {words[0]}: before the --, --num-accelerators N"):
        scheduler_command(options, CPU, 1)
