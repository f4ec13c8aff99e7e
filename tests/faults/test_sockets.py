"""While a command measures, nobody can reach it but over the loopback interface."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.launched import SMALL, bench, finished
from tests.support.marks import slow

RANKS = f"{SMALL} --world_size 2 --seq_len 64"
VERBS = {
    "run": f"run {RANKS} --steps 60 --out {{folder}}/rows.csv",
    "sweep": f"sweep {RANKS} --steps 40 --seed [0,1] --out {{folder}}/rows.csv",
    "verify": f"verify {RANKS} --steps 100 --out {{folder}}/verify.csv",
    "compare": f"compare {RANKS} --pairs 9 --peers dtensor_tp --out {{folder}}/compare.csv",
    "calibrate": f"calibrate {RANKS} --out {{folder}}/profile.yml",
    "theory": f"theory {RANKS} --measure true",
}
"""A command of each verb that starts ranks."""


def own_addresses() -> list[str]:
    """Return this machine's addresses on networks."""
    found = (a.address for of in psutil.net_if_addrs().values() for a in of)
    addresses = []
    for address in found:
        with suppress(ValueError):
            if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
                addresses.append(address)
    return addresses


def sockets_of(process: subprocess.Popen[str]) -> Iterator[Any]:
    """Yield the internet sockets of a process and its descendants."""
    with suppress(psutil.Error):
        root = psutil.Process(process.pid)
        for one in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                yield from one.net_connections("inet")


def answers(address: str, port: int) -> bool:
    """Whether a program on this machine answers at an address."""
    with suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


@pytest.mark.parametrize("verb", ["run", *(slow(verb) for verb in VERBS if verb != "run")])
def test_only_the_loopback_interface_is_used(verb: str, tmp_path: Path) -> None:
    process = bench(*VERBS[verb].format(folder=tmp_path).split())
    own, listened, reached = set(), set(), set()
    while process.poll() is None:
        for found in sockets_of(process):
            own.add(found.laddr.ip)
            if found.status == psutil.CONN_LISTEN and found.laddr.port not in listened:
                listened.add(found.laddr.port)
                reached |= {a for a in own_addresses() if answers(a, found.laddr.port)}
        time.sleep(0.1)
    status, _, err = finished(process)
    assert status == 0, err
    assert own, "ranks talk over sockets"
    assert {address for address in own if not ipaddress.ip_address(address).is_loopback} == set()
    assert reached == set()


def test_a_socket_on_all_interfaces_would_be_noticed() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        assert all(answers(address, port) for address in own_addresses() if ":" not in address)
        (found,) = (c for c in psutil.Process(os.getpid()).net_connections() if c.laddr[1] == port)
        assert not ipaddress.ip_address(found.laddr.ip).is_loopback
