"""GPUs that a dry run is for: how much memory there is, and what a step never gets of it.

A user's own is a YAML file with the fields of :class:`Hardware`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import yaml

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of node.

    Attributes:
        memory_bytes: Of one GPU, as CUDA reports it.
        context_bytes: Of it, what the CUDA context takes, outside PyTorch's allocator.
        nccl_bytes: Of it, what NCCL's communicators take, likewise.
        workspace_bytes: What cuBLAS holds from PyTorch's allocator.
        gpus_a_node: GPUs that share a host.
        host_memory_bytes: Of that host.
    """

    memory_bytes: int
    context_bytes: int
    nccl_bytes: int
    workspace_bytes: int
    gpus_a_node: int
    host_memory_bytes: int

    @property
    def usable_bytes(self) -> int:
        """What the tensors of a step may take on one GPU."""
        return self.memory_bytes - self.context_bytes - self.nccl_bytes - self.workspace_bytes


def _node_of_eight(memory_gib: float, workspace_mib: int, host_bytes: float) -> Hardware:
    """An NVLink node. A context takes about 1 GiB, NCCL "some" (ALST's and NCCL's users report 1 to
    4): 2 GiB are assumed here."""
    return Hardware(
        memory_bytes=int(memory_gib * GIB),
        context_bytes=GIB,
        nccl_bytes=2 * GIB,
        workspace_bytes=workspace_mib * 2**20,
        gpus_a_node=8,
        host_memory_bytes=int(host_bytes),
    )


# Memory: "total capacity" in PyTorch's out-of-memory messages. Workspace: cuBLAS's recommendation,
# which PyTorch follows (32 MiB from Hopper on; CUDABlas.cpp). Host: the nodes of ALST (arXiv
# 2506.13996) for H100, NVIDIA's DGX data sheets for the others.
PROFILES = {
    "a100-80g": _node_of_eight(79.15, 8, 2.0e12),
    "h100-80g": _node_of_eight(79.11, 32, 1.9e12),
    "h200-141g": _node_of_eight(139.81, 32, 2.0e12),
    "b200-180g": _node_of_eight(178.35, 32, 2.0e12),
}


def find(name: str) -> Hardware:
    """A profile by its name, or from a YAML file.

    Raises:
        ValueError: there is no such profile, or the file lacks a field or has one too many.
    """
    if name in PROFILES:
        return PROFILES[name]
    valid = f"{', '.join(PROFILES)}, or a YAML file"
    if not name.endswith((".yml", ".yaml")):
        raise ValueError(f"hardware is {name!r}; valid: {valid}")
    try:
        given = yaml.safe_load(Path(name).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"hardware is {name!r}: {reason}; valid: {valid}") from None
    names = {f.name for f in fields(Hardware)}
    given = given if isinstance(given, dict) else {}
    for what, wrong in (("lacks", names - given.keys()), ("has unknown", given.keys() - names)):
        if wrong:
            listed = ", ".join(sorted(map(str, wrong)))
            raise ValueError(
                f"hardware {name!r} {what} {listed}; valid: {', '.join(sorted(names))}"
            )
    bad = [key for key, value in given.items() if not isinstance(value, int) or value < 0]
    if bad:
        raise ValueError(f"hardware {name!r}: {bad[0]} is {given[bad[0]]!r}; valid: whole bytes")
    return Hardware(**given)
