"""Check before a real run starts that its offloading fits into this node's host memory.

bench/simulator/fit.py is the same check for a hardware profile.
"""

from __future__ import annotations

from dataclasses import replace

from bench.theory import memory as theory_memory
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import node_limit_bytes, ranks_per_node


def outcome(run: RunConfig) -> dict[str, str]:
    """Return the row's columns status and error if offloading does not fit; empty if it fits."""
    return {"status": "oom_cpu", "error": error} if (error := shortage(run)) else {}


def shortage(run: RunConfig) -> str:
    """Say in one line that offloading does not fit on this node; empty if it fits."""
    need, limit = node_bytes(run), node_limit_bytes(run)
    if need <= limit:
        return ""
    return (
        f"offloading needs {need} bytes of host memory on this node, "
        f"host_memory_limit_bytes is {limit}; {longest(run)}"
    )


def node_bytes(run: RunConfig) -> int:
    """Bytes of host memory that the ranks of this node offload to, together."""
    return theory_memory.host_bytes(run) * ranks_per_node(run.world_size)


def longest(run: RunConfig) -> str:
    """Describe the longest sequence whose offloading would fit."""
    unit, limit = run.seq_len_unit, node_limit_bytes(run)
    shortest, next_one = (node_bytes(replace(run, seq_len=k * unit)) for k in (1, 2))
    if shortest > limit:
        return f"no seq_len fits, {unit} would need {shortest}"
    if next_one == shortest:
        return "what is needed does not depend on seq_len"
    # The need grows by the same amount with every unit.
    steps = (limit - shortest) // (next_one - shortest)
    return f"the longest seq_len that fits is {unit + steps * unit}"
