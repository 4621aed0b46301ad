"""What would break a launch is told before anything is started."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from launch.cli import main
from launch.machine import free_port
from launch.preflight import check_port, check_reachable
from pretrain.errors import ConfigurationError

POPEN = subprocess.Popen
DEMO = str(Path(__file__).parents[2] / "configs" / "gpt" / "demo.toml")


class Refused(subprocess.Popen[bytes]):
    """No process is to be started."""

    def __init__(self, *words: object, **options: object) -> None:
        raise AssertionError(words)


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "Popen", Refused)


@pytest.mark.parametrize("address", ["127.0.0.1", "", "::1"])
@pytest.mark.parametrize(
    "command", [["train"], ["train", "--supervise"], ["rehearse", "--fault", "tev_drift@5"]]
)
def test_a_taken_port(
    address: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        taken = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip("no IPv6 on this machine")
    with taken:
        port = taken.getsockname()[1]
        name, *options = command
        assert main([name, DEMO, *options, "--master-port", str(port)]) == 2
    assert f"--master-port {port}: the port is in use" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_free_port() -> None:
    check_port(free_port())


@pytest.mark.parametrize("present", [[], ["pdsh"], ["ssh"]])
def test_missing_programs(
    present: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for program in present:
        (tmp_path / program).touch(mode=0o755)
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", DEMO, "--hostfile", "hosts"]) == 2
    missing = [program for program in ("pdsh", "ssh") if program not in present]
    assert f"{' and '.join(missing)} is not installed" in capsys.readouterr().err


def test_ports_of_others_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(ConfigurationError, match="--master-port 80: ports below 1024"):
        check_port(80)


def test_a_host_that_does_not_answer_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\necho "ssh: connect to host $5 port $4: refused" >&2\nexit 255\n')
    ssh.chmod(0o755)
    monkeypatch.setattr(subprocess, "Popen", POPEN)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(
        ConfigurationError, match=r"worker is not reached by ssh \(ssh: connect to host worker port 7:"
    ):
        check_reachable("worker", 7)
    with pytest.raises(
        ConfigurationError, match=r"`ssh -o PasswordAuthentication=no worker hostname` must work"
    ):
        check_reachable("worker", None)
