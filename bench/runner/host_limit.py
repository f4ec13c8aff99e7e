"""Whether what a run offloads fits into its node's host memory, known before anything starts."""

from __future__ import annotations

from dataclasses import replace

from bench.theory import memory as theory_memory
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import node_limit_bytes, ranks_per_node


def shortage(run: RunConfig) -> str:
    """Why offloading does not fit on this node, in one line; empty if it does."""
    need, limit = node_bytes(run), node_limit_bytes(run)
    if need <= limit:
        return ""
    return (
        f"offloading needs {need} bytes of host memory on this node, "
        f"host_memory_limit_bytes is {limit}; {longest(run)}"
    )


def node_bytes(run: RunConfig) -> int:
    """Host memory that all ranks of one node need together."""
    return theory_memory.host_bytes(run) * ranks_per_node(run.world_size)


def longest(run: RunConfig) -> str:
    """The longest sequence whose offloading would fit, in words."""
    unit, limit = run.seq_len_unit, node_limit_bytes(run)
    shortest, next_one = (node_bytes(replace(run, seq_len=k * unit)) for k in (1, 2))
    if shortest > limit:
        return f"no seq_len fits, {unit} would need {shortest}"
    if next_one == shortest:
        return "what is needed does not depend on seq_len"
    # Need grows by the same with every unit.
    steps = (limit - shortest) // (next_one - shortest)
    return f"the longest seq_len that fits is {unit + steps * unit}"
