"""Check that a peer can run a cell on this machine."""

from __future__ import annotations

import importlib.util
import math

from methods.peers.registry import PEERS
from odysseus.config.run import RunConfig
from odysseus.config.sizes import divisors
from odysseus.parallel.mesh import pick_device

PREFIX = "peer:"
"""Prefix of a run's method that is a peer: ``peer:NAME``."""

_CUT_SIZES = {
    "tp": ("num_key_value_heads", "intermediate_size"),
    "tp_sp": ("num_key_value_heads", "intermediate_size"),
}
"""Sizes of the model that the peers of a method cut over the ranks, by method."""


def name_of(method: str) -> str:
    """Return the name of a run's peer; empty if the method is one of this project's."""
    return method.removeprefix(PREFIX) if method.startswith(PREFIX) else ""


def check_cell(name: str, run: RunConfig, device: str = "") -> None:
    """Raise ValueError unless the peer supports the run's dtype, device, ranks and sizes.

    Args:
        device: Kind of device; by default the one that the run has here.
    """
    peer, ranks, device = PEERS[name], run.world_size, device or pick_device(run.device).type
    for key, given, valid in (("dtype", run.dtype, peer.dtypes), ("device", device, peer.devices)):
        if given not in valid:
            raise ValueError(f"{key} = {given} is not for peer {name}; valid: {', '.join(valid)}")
    check_device(name, device)
    if run.architecture.num_experts:
        raise ValueError(
            f"model.num_experts = {run.architecture.num_experts} is not for peer {name}; valid: 0"
        )
    if ranks < peer.least_ranks:
        raise ValueError(
            f"world_size = {ranks} is not for peer {name}; valid: {peer.least_ranks} or more"
        )
    names = (*_CUT_SIZES.get(peer.method, ()), *peer.cuts)
    sizes = {key: getattr(run.architecture, key) for key in names}
    for key, size in sizes.items():
        if size % ranks:
            raise ValueError(
                f"model.{key} = {size} does not divide by world_size = {ranks}, which peer {name} "
                f"needs; valid: world_size of {divisors(math.gcd(*sizes.values()))}"
            )


def check_device(name: str, device: str) -> None:
    """Raise ValueError unless the package that the peer needs on this device is installed."""
    package = PEERS[name].gpu_package
    if device == "cuda" and package and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"device = {device}: peer {name} needs the package {package} there; valid without it: "
            "cpu, or other peers"
        )


def check(name: str) -> None:
    """Raise ValueError unless the name is a peer's and its package is installed."""
    if name not in PEERS:
        raise ValueError(f"peers: {name!r} is none; valid: all, {', '.join(PEERS)}")
    check_package(name)


def check_package(name: str) -> None:
    """Raise ValueError unless the packages that the peer needs are installed."""
    for package in PEERS[name].package.split():
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"peer {name} needs the package {package}; valid: pip install "
                f"{PEERS[name].install}, or other peers"
            )
