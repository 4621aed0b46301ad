"""Where the name of a host leads to itself alone, gloo listens on the interface that leads to rank 0.

tests/launch/test_two_hosts.py has two such hosts train.
"""

import socket
from ipaddress import ip_address

import psutil
import pytest

from parallel import interfaces
from parallel.interfaces import INTERFACE, choose_interface, interface_towards, loops_back


def test_the_interface_of_an_address() -> None:
    assert interface_towards("127.0.0.1") == interface_towards("localhost") == interface_towards("") == ""
    for name, addresses in psutil.net_if_addrs().items():
        for found in addresses:
            if found.family is socket.AF_INET and not ip_address(found.address).is_loopback:
                assert interface_towards(found.address) == name


@pytest.mark.parametrize(
    ("before", "towards", "looping", "after"),
    [
        ({}, "eth7", True, {INTERFACE: "eth7"}),
        ({}, "eth7", False, {}),
        ({}, "", True, {}),
        ({INTERFACE: "ib0"}, "eth7", True, {INTERFACE: "ib0"}),
    ],
)
def test_it_is_chosen_where_it_must_be(
    monkeypatch: pytest.MonkeyPatch,
    before: dict[str, str],
    towards: str,
    looping: bool,
    after: dict[str, str],
) -> None:
    monkeypatch.setattr(interfaces, "interface_towards", lambda address: towards)
    monkeypatch.setattr(interfaces, "loops_back", lambda address: looping)
    choose_interface(before, "10.0.0.1")
    assert before == after


def test_what_loops_back() -> None:
    assert [loops_back(address) for address in ("127.0.1.1", "::1", "10.0.0.1")] == [True, True, False]
