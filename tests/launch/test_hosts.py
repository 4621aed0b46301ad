"""Hostfiles are read as DeepSpeed reads them, and problems come with line numbers."""

import os
import re
from pathlib import Path

import pytest
from deepspeed.launcher.runner import _parse_hostfile, parse_inclusion_exclusion
from hypothesis import given
from hypothesis import strategies as st

from launch.hosts import (
    HOST_NAME,
    environment_file_problems,
    host_lines,
    hostfile_problems,
    read_hostfile,
    select_slots,
)
from pretrain.errors import ConfigurationError

lines = st.one_of(
    st.sampled_from(["", "   ", "# comment", "  # indented", "worker-0", "slots=4", "worker-1 4"]),
    st.builds("{}{}slots={}{}".format,
        st.sampled_from(["worker-0", "worker-1", "10.0.0.1", "node.domain"]),
        st.sampled_from([" ", "\t", "   "]),
        st.integers(1, 16),
        st.sampled_from(["", " ", " # why"]),
    ),
)  # fmt: skip


@given(st.lists(lines, max_size=6))
def test_hostfiles_are_read_as_deepspeed_reads_them(content: list[str]) -> None:
    text = "\n".join(content)
    problems = list(hostfile_problems(Path("hosts"), text))
    ours = {host: count for _, host, count in host_lines(text)}
    try:
        theirs = _parse_hostfile(content)
    except ValueError:
        assert problems or not ours
    else:
        assert not problems
        assert list(ours.items()) == list(theirs.items())


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# cluster\na slots=2\n\nb 4\na slots=3\nc slots=0\n")
    with pytest.raises(ConfigurationError) as caught:
        read_hostfile(path)
    told = [str(problem) for problem in caught.value.problems]
    assert [line.partition(": ")[0] for line in told] == [f"{path}:4", f"{path}:5", f"{path}:6"]
    assert "'b 4' is not HOST slots=N" in told[0]
    assert "a stands already in line 2" in told[1]
    assert "c has no slots" in told[2]


def test_of_many_bad_lines_the_first_are_named(tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text("worker\n" * 2000)
    with pytest.raises(ConfigurationError, match=r"hostfile:100: .*\n  and 1,900 more$") as raised:
        read_hostfile(path)
    assert len(str(raised.value).splitlines()) == 102
    assert len(raised.value.problems) == 2000


@pytest.mark.parametrize("text", ["", "# nothing\n"])
def test_hostfile_without_hosts_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="names no host"):
        read_hostfile(path)


def test_missing_hostfile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_hostfile(tmp_path / "absent")


hostile = {
    "an option of ssh": "-oProxyCommand=touch${IFS}x",
    "an option after a user": "me@-oProxyCommand=x",
    "a user that is an option": "-lroot@host",
    "two commands": "host;touch",
    "a command in a name": "$(id)",
    "the same in back quotes": "`id`",
    "a file of pdsh": "^file",
    "a list of pdsh": "host[1-9]",
    "two hosts": "a,b",
    "a module of pdsh": "exec:host",
    "a path": "../host",
    "a pipe": "host|sh",
    "a control character": "host\x1b[2J",
    "a letter that looks like another": "h\u043est",
    "a byte order mark": "\ufeffhost",
    "a zero width space": "ho\u200bst",
    "a NUL": "host\0",
    "a user twice": "a@b@c",
    "quotes": "'host'",
    "nothing but dots": "...",
}


@pytest.mark.parametrize("name", hostile.values(), ids=hostile.keys())
def test_names_that_mean_something_to_ssh_or_a_shell_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"good slots=1\n{name} slots=1\n")
    with pytest.raises(ConfigurationError, match="is not the name or address of a host") as caught:
        read_hostfile(path)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))
    assert not HOST_NAME.fullmatch(name)  # as --master-addr, too


@pytest.mark.parametrize("name", ["worker-0", "node.domain", "me@10.0.0.1", "_host", "::1", "fe80::1", "A1"])
def test_names_and_addresses_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(f"{name} slots=2\r\n".encode())
    assert read_hostfile(path) == {name: (0, 1)}


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ("0", "has no slots"),
        ("1025", "has 1025 slots, more than 1024"),
        ("1000000000", "more than 1024"),
        ("9" * 10_000, "more than 1024"),
        ("-1", "is not HOST slots=N"),
        ("1e3", "is not HOST slots=N"),
        ("8x", "is not HOST slots=N"),
    ],
)
def test_slots_that_no_machine_has_are_refused(tmp_path: Path, slots: str, message: str) -> None:
    path = tmp_path / "hosts"
    path.write_text(f"host slots={slots}\n")
    with pytest.raises(ConfigurationError, match=message):
        read_hostfile(path)


def test_a_hostfile_is_a_regular_text_file(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    os.mkfifo(path)
    with pytest.raises(ConfigurationError, match="not a regular file"):
        read_hostfile(path)
    path.unlink()
    path.write_bytes(b"h\xf6st slots=1\n")
    with pytest.raises(ConfigurationError, match="not a text file in UTF-8"):
        read_hostfile(path)


POOL = {"a": (0, 1, 2, 3), "b": (0, 1), "c": (0,)}


@pytest.mark.parametrize("text", ["a", "b@a", "a:0,2", "a:2@a:0", "a:1@c", "c@b:1,1", "a:0,1,2,3"])
@pytest.mark.parametrize("option", ["include", "exclude"])
def test_filters_choose_what_deepspeed_chooses(option: str, text: str) -> None:
    pool = {host: len(numbers) for host, numbers in POOL.items()}
    include, exclude = (text, "") if option == "include" else ("", text)
    theirs = parse_inclusion_exclusion(pool, include, exclude)
    ours = select_slots(POOL, include, exclude)
    assert [(host, sorted(numbers)) for host, numbers in theirs.items()] == [
        (host, list(numbers)) for host, numbers in ours.items()
    ]


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("d", "", "no host d; there are a, b, c"),
        ("b:2", "", "b has slots 0 to 1, not [2]"),
        ("b:x", "", "x is not a list of slots"),
        ("b:" + "1" * 5000, "", "is not a list of slots"),
        ("b:\u0663", "", "is not a list of slots"),
        ("-oProxyCommand=x", "", "no host -oProxyCommand=x; there are a, b, c"),
        ("a", "b", "exclude each other"),
        ("", "a@b@c", "leaves no accelerator"),
    ],
)
def test_bad_filters_are_explained(include: str, exclude: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        select_slots(POOL, include, exclude)


def test_environment_file_lines_that_break_the_launcher(tmp_path: Path) -> None:
    path = tmp_path / ".deepspeed_env"
    path.write_text("NCCL_DEBUG=INFO\n\n# note\n#A=b\nnothing\nGREETING=two words\nHOME_OF=$HOME\nA B=c\n")
    problems = {problem.key: problem.rule for problem in environment_file_problems(path)}
    assert list(problems) == [f"{path}:{line}" for line in (2, 3, 4, 5, 7, 8)]
    assert "blank line" in problems[f"{path}:2"]
    assert "comment" in problems[f"{path}:3"]
    assert "comment" in problems[f"{path}:4"]
    assert "NAME=VALUE" in problems[f"{path}:5"]
    assert "$" in problems[f"{path}:7"]
