"""Peers: other implementations of the same methods, timed beside this project's in the same run.

Each file of a peer builds the plain model of ``plain.py`` with the fast path that the peer's own
documentation describes. A file is imported only when its peer is used: its package may be missing.
"""

from methods.peers.checks import PREFIX, check, check_cell, check_device, check_package, name_of
from methods.peers.peer import PARTS, Build, Optimizer, Peer, PeerTrainer
from methods.peers.registry import PEERS

__all__ = [
    "PARTS",
    "PEERS",
    "PREFIX",
    "Build",
    "Optimizer",
    "Peer",
    "PeerTrainer",
    "check",
    "check_cell",
    "check_device",
    "check_package",
    "name_of",
]
