"""Hostfiles and `.deepspeed_env` are read as DeepSpeed's launcher reads them, and a problem names its line."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_pipeline.parsing import read_whole
from data_pipeline.shown import shown
from pretrain.errors import ConfigurationError, Problem

HOST_LINE = re.compile(r"^(\S+)\s+slots=(\d+)(?=\s|$)")
"""This is the pattern of `deepspeed.launcher.runner`, which takes `slots=1e3` for one."""

HOST_NAME = re.compile(r"(\w[\w.-]*@)?(\w[\w.-]*|[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f.]*)", re.ASCII)
"""A name, or an address of either kind, after a user if need be. It reaches ssh and shells as a word: a dash in front
would make an option of it, and other characters mean something to a shell, or to pdsh."""

NAME_REMEDY = "letters, digits, '.', '_' and '-', the first a letter or digit, as in worker-0 or me@10.0.0.1"

PLAIN_PATH = re.compile(r"[\w@+=:,./-]+")

MOST_SLOTS = 1024
"""No machine has so many accelerators."""

SHELL_CHARACTERS = re.compile(r"[`$\"\\]")
"""A shell does not take these literally between the double quotes that DeepSpeed puts around a value."""

Slots = Mapping[str, tuple[int, ...]]
"""It maps a host to its accelerator numbers, in the order of ranks."""


def read_hostfile(path: Path) -> Slots:
    """It parses a hostfile of lines `HOST slots=N`, and raises ConfigurationError with every bad line."""
    text = read_text(path)
    problems = list(hostfile_problems(path, text))
    found = list(host_lines(text))
    if not found and not problems:
        problems = [Problem(shown(path), "names no host", "for example worker-0 slots=8")]
    if problems:
        raise ConfigurationError(f"{shown(path)}: not a usable hostfile", problems)
    return {host: tuple(range(count)) for _, host, count in found}


def check_address(address: str) -> None:
    """It raises ConfigurationError for a `--master-addr` that is no name or address."""
    if address and not HOST_NAME.fullmatch(address):
        raise ConfigurationError(
            f"--master-addr {shown(address)}: not the name or address of a host; {NAME_REMEDY}"
        )


def check_folder(folder: str) -> None:
    """It raises ConfigurationError for a current directory that shells would not take: DeepSpeed does not quote it."""
    if not PLAIN_PATH.fullmatch(folder):
        raise ConfigurationError(
            f"{shown(folder)}: shells on the hosts would not take this folder as it stands; start where the path "
            "has letters, digits and - _ . / + = : , @ alone, or choose another --launcher"
        )


def hostfile_problems(path: Path, text: str) -> Iterator[Problem]:
    """It yields lines that DeepSpeed refuses, names that are none, and hosts that would get no rank."""
    first_line: dict[str, int] = {}
    understood = {line: (host, count) for line, host, count in host_lines(text)}
    for line, content in meaningful_lines(text):
        where = f"{shown(path)}:{line}"
        if line not in understood:
            yield Problem(where, f"'{shown(content)}' is not HOST slots=N", "for example worker-0 slots=8")
            continue
        host, count = understood[line]
        if not HOST_NAME.fullmatch(host):
            yield Problem(where, f"{shown(host)} is not the name or address of a host", NAME_REMEDY)
        if host in first_line:
            rule = f"{shown(host)} stands already in line {first_line[host]}"
            yield Problem(where, rule, "keep one of the lines")
        if not 0 < count <= MOST_SLOTS:
            rule = f"{shown(host)} has {count or 'no'} slots" + (f", more than {MOST_SLOTS}" if count else "")
            yield Problem(where, rule, "for example slots=8, or remove the line")
        first_line.setdefault(host, line)


def host_lines(text: str) -> Iterator[tuple[int, str, int]]:
    """It yields (line, host, slots); of a number that no machine has, the first digits."""
    for line, content in meaningful_lines(text):
        if match := HOST_LINE.match(content):
            yield line, match[1], int(match[2][:9])


def meaningful_lines(text: str) -> Iterator[tuple[int, str]]:
    """It yields the lines that are neither empty nor a comment, with their numbers."""
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip() and not content.strip().startswith("#"):
            yield line, content.strip()


def select_slots(slots: Slots, include: str = "", exclude: str = "") -> Slots:
    """It applies `--include` or `--exclude`: `host@host:0,2` names whole hosts or some of their slots.

    It raises ConfigurationError for an unknown host or slot, for both options at once, and when nothing is left.
    """
    if include and exclude:
        raise ConfigurationError("--include and --exclude exclude each other; give one of them")
    option = "--include" if include else "--exclude"
    named = parse_filter(option, include or exclude, slots)
    if include:
        left = {host: named[host] for host in slots if host in named}
    else:
        left = {host: tuple(n for n in slots[host] if n not in named.get(host, ())) for host in slots}
    left = {host: numbers for host, numbers in left.items() if numbers}
    if not left:
        raise ConfigurationError(f"{option} {include or exclude}: leaves no accelerator")
    return left


def parse_filter(option: str, text: str, slots: Slots) -> dict[str, tuple[int, ...]]:
    """It returns the hosts and slots that a filter names; a host alone means all of its slots."""
    named: dict[str, tuple[int, ...]] = {}
    for entry in filter(None, text.split("@")):
        host, _, numbers = entry.partition(":")
        if host not in slots:
            raise ConfigurationError(
                f"{option} {shown(text)}: no host {shown(host)}; there are {', '.join(slots)}"
            )
        if numbers and not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4})*", numbers):
            raise ConfigurationError(
                f"{option} {shown(text)}: {shown(numbers)} is not a list of slots such as 0,2"
            )
        chosen = tuple(sorted({int(n) for n in numbers.split(",")})) if numbers else slots[host]
        if missing := [n for n in chosen if n not in slots[host]]:
            raise ConfigurationError(
                f"{option} {text}: {host} has slots 0 to {max(slots[host])}, not {missing}"
            )
        named[host] = tuple(sorted({*named.get(host, ()), *chosen}))
    return named


def environment_files(environment: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """It yields the files of variables for other hosts, `.deepspeed_env`, that DeepSpeed's launcher would read."""
    name = environment.get("DS_ENV_FILE", ".deepspeed_env")
    for folder in dict.fromkeys((os.path.expanduser("~"), os.getcwd())):
        if (path := Path(folder, name)).is_file():
            yield path


def host_environment(path: str) -> str:
    """It returns the variables of those files for other hosts, with `path` as their PYTHONPATH.

    Raises:
        ConfigurationError: a line of a file would crash DeepSpeed's launcher.
    """
    files = tuple(environment_files())
    if problems := [problem for file in files for problem in environment_file_problems(file)]:
        raise ConfigurationError("variables for other hosts cannot be used", problems)
    lines = [line for file in files for line in read_text(file).splitlines()]
    return "".join(f"{line}\n" for line in (*lines, f"PYTHONPATH={path}"))


def environment_file_problems(path: Path) -> Iterator[Problem]:
    """It yields lines of a `.deepspeed_env` that crash the launcher or garble the command that it runs elsewhere."""
    for line, content in enumerate(read_text(path).splitlines(), start=1):
        where, (name, separator, value) = f"{path}:{line}", content.partition("=")
        if not content.strip():
            yield Problem(where, "a blank line crashes DeepSpeed's launcher", "remove it")
        elif content.lstrip().startswith("#"):
            yield Problem(where, "a comment breaks DeepSpeed's launcher", "remove it")
        elif not separator or not re.fullmatch(r"\s*[A-Za-z_]\w*\s*", name):
            yield Problem(where, f"'{shown(content)}' is not NAME=VALUE", "for example NCCL_DEBUG=INFO")
        elif found := SHELL_CHARACTERS.search(value):
            yield Problem(
                where, f"the shell on the other hosts would not take {found[0]} as it stands", "avoid it"
            )


def read_text(path: Path) -> str:
    """It reads a text file, and raises ConfigurationError where that cannot be."""
    try:
        return read_whole(path).decode().replace("\r\n", "\n")
    except OSError as error:
        raise ConfigurationError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{shown(path)}: not a text file in UTF-8") from None
