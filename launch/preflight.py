"""What would break a launch right away is looked for before anything is started."""

import errno
import shlex
import shutil
import socket
import subprocess

from data_pipeline.shown import shown
from launch.command import REMOTE_SHELL_LAUNCHER, Command, LaunchOptions
from launch.machine import this_machine
from pretrain.errors import ConfigurationError


def check_launch(command: Command, options: LaunchOptions) -> None:
    """It looks for the programs that start ranks on hosts, for the first host, and for somebody else at the port of
    rank 0.

    Raises:
        ConfigurationError: a program is missing, the host does not answer, or ranks could not listen at the port.
    """
    if options.launcher != REMOTE_SHELL_LAUNCHER:
        return
    if options.slots is not None:
        check_programs()
        check_reachable(next(iter(options.slots)), options.ssh_port)
    if options.slots is None or next(iter(options.slots)) in this_machine().names:
        check_port(command.master_port)


def check_programs() -> None:
    """It raises ConfigurationError where ranks cannot be started on hosts."""
    if missing := [program for program in ("pdsh", "ssh") if not shutil.which(program)]:
        raise ConfigurationError(
            f"--hostfile: {' and '.join(missing)} is not installed; install it here, or choose another --launcher"
        )


def check_reachable(host: str, port: int | None) -> None:
    """It raises ConfigurationError where DeepSpeed's launcher would end with a traceback (0.19.8): it asks the first
    host for its name."""
    command = ["ssh", "-o", "PasswordAuthentication=no", *(["-p", str(port)] if port else []), host]
    answer = subprocess.run([*command, "hostname"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if answer.returncode:
        why = shown(answer.stderr.strip().splitlines()[-1]) if answer.stderr.strip() else "no reason is given"
        raise ConfigurationError(
            f"--hostfile: {host} is not reached by ssh ({why}); `{shlex.join([*command, 'hostname'])}` must work "
            "without a password"
        )


def check_port(port: int) -> None:
    """It raises ConfigurationError where rank 0 could not listen at the port, on any address of this machine."""
    for family, everywhere in ((socket.AF_INET, ""), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the store of the ranks does
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((everywhere, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigurationError(
                    f"--master-port {port}: the port is in use; leave it out, or choose a free one"
                ) from None
            if error.errno == errno.EACCES:
                raise ConfigurationError(
                    f"--master-port {port}: ports below 1024 are for root; choose another"
                ) from None
            # no IPv6 here, above all
