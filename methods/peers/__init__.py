"""Other implementations of the same methods, to be timed beside this project's in the same run.

Each file is a peer's own fast path, as its documentation has it, around the plain model of
``plain.py``; it is imported when it is asked for, and its package may be missing.
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
