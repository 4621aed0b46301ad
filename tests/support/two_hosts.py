"""Two hosts run on one machine: network namespaces with an address, an interface `eth0` and an sshd each.

They share the file system, as hosts with a network file system do. They need root and the programs of Debian's
iproute2, openssh-server, openssh-client and pdsh.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("ip", "/usr/sbin/sshd", "ssh", "ssh-keygen", "pdsh")
ADDRESSES = ("10.231.77.1", "10.231.77.2")
INTERFACE = "eth0"
SECONDS = 60.0

SSHD_CONFIG = """
ListenAddress {address}
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
SetEnv HOME={folder}
"""
"""A home of their own: start files of the user's shell would cost seconds, and may be killed half-way."""
SSH_CONFIG = """
IdentityFile {folder}/key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
"""


def why_not() -> str:
    """It returns the reason why two hosts cannot be had here; empty where they can."""
    if os.geteuid() != 0:
        return "needs root for network namespaces"
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"needs {', '.join(missing)}"
    probe = f"sf-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode:
        return "network namespaces are not allowed here"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return ""


@dataclass(frozen=True)
class TwoHosts:
    """Both hosts run; the first one is where commands start."""

    folder: Path
    namespaces: tuple[str, str]

    @property
    def addresses(self) -> tuple[str, str]:
        return ADDRESSES

    def set_link(self, host: int, state: str) -> None:
        """It cuts the cable at one of the hosts (`down`), so that nobody is told of it, or mends it (`up`)."""
        ip("-n", self.namespaces[host], "link", "set", INTERFACE, state)

    @contextmanager
    def own_disk(self, host: int, folder: Path) -> Iterator[None]:
        """Within it, what a host sees at `folder` lies on a disk of its own; `ip` gives each its own mounts."""
        pids = subprocess.check_output(["ip", "netns", "pids", self.namespaces[host]], text=True).split()
        within = ["nsenter", "--mount", f"--target={pids[0]}"]
        subprocess.run([*within, "mount", "-t", "tmpfs", "none", str(folder)], check=True)
        try:
            yield
        finally:
            subprocess.run([*within, "umount", "--lazy", str(folder)], check=True)

    @contextmanager
    def congested(self, host: int, limit: str = "rate 8mbit burst 8kb latency 20ms") -> Iterator[None]:
        """Within it, what a host sends waits in a short queue, and is lost where that is full."""
        queue = ["tc", "-n", self.namespaces[host], "qdisc"]
        subprocess.run([*queue, "add", "dev", INTERFACE, "root", "tbf", *limit.split()], check=True)
        try:
            yield
        finally:
            subprocess.run([*queue, "delete", "dev", INTERFACE, "root"], check=True)

    def popen(
        self, command: Sequence[str], environment: Mapping[str, str], output: Path
    ) -> "subprocess.Popen[bytes]":
        """It starts a command on the first host, in a session of its own, its output in a file."""
        path = f"{self.folder}:{os.environ['PATH']}"  # `ssh` there knows the keys
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespaces[0], *command],
            env={**os.environ, **environment, "PATH": path},
            cwd=self.folder,
            stdout=output.open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """It brings both hosts up, and takes them down again with all that runs on them."""
    namespaces = (f"sf-a-{os.getpid()}", f"sf-b-{os.getpid()}")
    write_ssh_files(folder)
    Path("/run/sshd").mkdir(exist_ok=True)
    with ExitStack() as stack:
        for namespace in namespaces:
            ip("netns", "add", namespace)
            stack.callback(remove_namespace, namespace)
        connect(namespaces)
        for namespace, address in zip(namespaces, ADDRESSES, strict=True):
            start_sshd(folder, namespace, address)
        for address in ADDRESSES:
            wait_for_ssh(folder, namespaces[0], address)
        yield TwoHosts(folder, namespaces)


def write_ssh_files(folder: Path) -> None:
    """It writes a key, which is both host key and user key, and an `ssh` that uses it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
    wrapper = folder / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)


def connect(namespaces: tuple[str, str]) -> None:
    """It lays a cable between two interfaces that are called alike."""
    first, second = namespaces
    ip("link", "add", INTERFACE, "netns", first, "type", "veth", "peer", "name", INTERFACE, "netns", second)
    for namespace, address in zip(namespaces, ADDRESSES, strict=True):
        ip("-n", namespace, "address", "add", f"{address}/24", "dev", INTERFACE)
        ip("-n", namespace, "link", "set", INTERFACE, "up")
        ip("-n", namespace, "link", "set", "lo", "up")


def start_sshd(folder: Path, namespace: str, address: str) -> None:
    config = folder / f"sshd-{namespace}"
    config.write_text(SSHD_CONFIG.format(folder=folder, address=address))
    subprocess.run(["ip", "netns", "exec", namespace, "/usr/sbin/sshd", "-f", str(config)], check=True)


def wait_for_ssh(folder: Path, namespace: str, address: str) -> None:
    command = ["ip", "netns", "exec", namespace, str(folder / "ssh"), address, "true"]
    deadline = time.monotonic() + SECONDS
    while subprocess.run(command, capture_output=True, check=False).returncode:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no sshd at {address}")
        time.sleep(0.1)


def remove_namespace(namespace: str) -> None:
    """It ends what runs in a namespace, by its process ids, and deletes that."""
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in listed.stdout.split():
        subprocess.run(["kill", "-KILL", pid], capture_output=True, check=False)
    ip("netns", "delete", namespace)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
