"""What the user passes on to a launcher, behind `--`, is checked here.

Ranks are found by what we have told the launcher, to signal them and to end what is left of them; it must not be told
otherwise behind our back.
"""

import re
from collections.abc import Collection, Iterable

from pretrain.errors import ConfigurationError

FLAGS = ("--save_pid", "--no_ssh_check", "--no_local_rank", "--bind_cores_to_rank", "--quiet", "-q")
VALUED = ("--enable_each_rank_log", "--bind_core_list", "--launcher_args", "--venv_script", "--log_level")
"""Options of DeepSpeed's launcher that change nothing of what we know about its ranks."""
COUNT = "--num-accelerators N does that"
INSTEAD = {
    "--num_gpus": COUNT,
    "--num_accelerators": COUNT,
    "--num_nodes": "--hostfile and --include choose hosts",
    "--hostfile": "--hostfile FILE does that",
    "-H": "--hostfile FILE does that",
    "--include": "--include HOSTS does that",
    "-i": "--include HOSTS does that",
    "--exclude": "--exclude HOSTS does that",
    "-e": "--exclude HOSTS does that",
    "--master_addr": "--master-addr HOST does that",
    "--master_port": "--master-port N does that",
    "--ssh_port": "--ssh-port N does that",
    "--launcher": "--launcher NAME does that",
}
"""Option of DeepSpeed's launcher -> what is said instead."""
COUNTS = {"slurm": r"-n\d*|--ntasks", "openmpi": r"-n|--n|-np|--np|-c|--c"}
"""Launcher -> its options that say how many ranks there are."""


def check_for_deepspeed(words: Iterable[str], programs: Collection[str]) -> None:
    """It raises ConfigurationError for all but options of DeepSpeed's launcher that may be passed on; `programs` are
    those that are here."""
    rest = iter(words)
    for word in rest:
        name, given, _ = word.partition("=")
        if word == "--bind_cores_to_rank" and "numactl" not in programs:
            raise ConfigurationError(f"-- {word}: there is no numactl here, which does that")
        if name in VALUED:
            if not given and next(rest, None) is None:
                raise ConfigurationError(f"-- {word}: a value is missing")
        elif word not in FLAGS:
            raise ConfigurationError(refusal(word))


def refusal(word: str) -> str:
    """It says why DeepSpeed's launcher does not get this word. Its options can be cut short: `--num_g`."""
    name = word.partition("=")[0]
    name = name[:2] if name[1:2] != "-" else name
    known = [option for option in INSTEAD if option.startswith(name)] if name not in ("-", "--") else []
    if known:
        return f"-- {word}: not for DeepSpeed's launcher; before the --, {INSTEAD[known[0]]}"
    passed_on = ", ".join((*FLAGS, *VALUED))
    return f"-- {word}: DeepSpeed's launcher is only given {passed_on}"


def check_for_scheduler(launcher: str, words: Iterable[str]) -> None:
    """It raises ConfigurationError for options of `srun` and `mpirun` that say how many ranks there are: the plan was
    made for others."""
    for word in words:
        if re.fullmatch(COUNTS[launcher], word.partition("=")[0]):
            raise ConfigurationError(f"-- {word}: before the --, {COUNT}")
