"""Whether a peer can run a cell here."""

from __future__ import annotations

import importlib.util
import math

from methods.peers.registry import PEERS
from odysseus.config.run import RunConfig
from odysseus.config.sizes import divisors
from odysseus.parallel.mesh import pick_device

PREFIX = "peer:"
"""Of a run's method: ``peer:NAME`` is that peer."""


_CUT = {
    "tp": ("num_key_value_heads", "intermediate_size"),
    "tp_sp": ("num_key_value_heads", "intermediate_size"),
}
"""By method, sizes of the model that its peers cut into as many parts as there are ranks."""


def name_of(method: str) -> str:
    """The peer that a run's method is; empty if it is one of ours."""
    return method.removeprefix(PREFIX) if method.startswith(PREFIX) else ""


def check_cell(name: str, run: RunConfig) -> None:
    """Raise ValueError unless the peer can do the run's dtype, device, ranks and sizes."""
    peer, ranks, device = PEERS[name], run.world_size, pick_device(run.device).type
    for key, given, valid in (("dtype", run.dtype, peer.dtypes), ("device", device, peer.devices)):
        if given not in valid:
            raise ValueError(f"{key} = {given} is not for peer {name}; valid: {', '.join(valid)}")
    check_device(name, device)
    if ranks < peer.least_ranks:
        raise ValueError(
            f"world_size = {ranks} is not for peer {name}; valid: {peer.least_ranks} or more"
        )
    cut = (*_CUT.get(peer.method, ()), *peer.cuts)
    sizes = {key: getattr(run.architecture, key) for key in cut}
    for key, size in sizes.items():
        if size % ranks:
            raise ValueError(
                f"model.{key} = {size} does not divide by world_size = {ranks}, which peer {name} "
                f"needs; valid: world_size of {divisors(math.gcd(*sizes.values()))}"
            )


def check_device(name: str, device: str) -> None:
    """Raise ValueError unless what the peer needs on a kind of device is installed."""
    package = PEERS[name].gpu_package
    if device == "cuda" and package and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"device = {device}: peer {name} needs the package {package} there; valid without it: "
            "cpu, or other peers"
        )


def check(name: str) -> None:
    """Raise ValueError unless there is such a peer and its package is installed."""
    if name not in PEERS:
        raise ValueError(f"peers: {name!r} is none; valid: all, {', '.join(PEERS)}")
    check_package(name)


def check_package(name: str) -> None:
    """Raise ValueError unless what the peer needs is installed."""
    for package in PEERS[name].package.split():
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"peer {name} needs the package {package}; valid: pip install "
                f"{PEERS[name].install}, or other peers"
            )
