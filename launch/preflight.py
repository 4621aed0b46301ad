"""What would break a launch right away is looked for before anything is started."""

import errno
import shutil
import socket

from launch.command import REMOTE_SHELL_LAUNCHER, Command, LaunchOptions
from launch.machine import this_machine
from pretrain.errors import ConfigurationError


def check_launch(command: Command, options: LaunchOptions) -> None:
    """It looks for the programs that start ranks on hosts, and for somebody else at the port of rank 0.

    Raises:
        ConfigurationError: a program is missing, or ranks could not listen at the port.
    """
    if options.launcher != REMOTE_SHELL_LAUNCHER:
        return
    if options.slots is not None:
        check_programs()
    if options.slots is None or next(iter(options.slots)) in this_machine().names:
        check_port(command.master_port)


def check_programs() -> None:
    """It raises ConfigurationError where ranks cannot be started on hosts."""
    if missing := [program for program in ("pdsh", "ssh") if not shutil.which(program)]:
        raise ConfigurationError(
            f"--hostfile: {' and '.join(missing)} is not installed; install it here, or choose another --launcher"
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
