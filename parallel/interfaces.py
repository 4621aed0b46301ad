"""Ranks on several hosts must not be told to come to 127.0.0.1.

gloo listens at the address that a host's own name has, and tells that to the others. Debian and Ubuntu write the name
into /etc/hosts with a loopback address.
"""

import socket
from collections.abc import MutableMapping
from ipaddress import ip_address

import psutil

INTERFACE = "GLOO_SOCKET_IFNAME"
"""What gloo listens on instead, by name."""


def choose_interface(environment: MutableMapping[str, str], address: str) -> None:
    """Have gloo listen on the interface that leads to `address`, that of rank 0, where it would listen on the loopback
    interface and rank 0 may not. Whoever has chosen one is heeded."""
    if INTERFACE in environment or not (name := interface_towards(address)):
        return
    if loops_back(socket.gethostname()):
        environment[INTERFACE] = name


def interface_towards(address: str) -> str:
    """It returns the name of the interface by which this host reaches an address; empty for itself and the unknown."""
    try:
        (family, *_, place), *_ = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # to connect it sends nothing
            probe.connect(place)
            own = probe.getsockname()[0].partition("%")[0]
    except OSError:
        return ""
    if ip_address(own).is_loopback:
        return ""
    of = {
        found.address.partition("%")[0]: name
        for name, addresses in psutil.net_if_addrs().items()
        for found in addresses
    }
    return of.get(own, "")


def loops_back(address: str) -> bool:
    """It tells whether a name or an address leads a host to itself alone, or nowhere."""
    try:
        return ip_address(socket.getaddrinfo(address, None)[0][4][0]).is_loopback
    except (OSError, ValueError):
        return True
