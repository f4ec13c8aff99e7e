"""Keep a rank on the CPUs of its GPU's NUMA node, so that what it copies to and from the GPU is in
memory beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def bind(device: torch.device, system: Path = Path("/sys")) -> set[int]:
    """Let this thread, and all that it starts, run only on CPUs of the NUMA node of a GPU.

    It is what mode `node` of torchrun's `--numa-binding` does, which needs the program numactl.
    Nothing changes where a launcher has chosen CPUs, or the system does not know the GPU's node.

    Args:
        system: Where the kernel describes its devices (sysfs).

    Returns:
        The CPUs; none if nothing has changed.
    """
    allowed = os.sched_getaffinity(0)
    if len(allowed) != os.cpu_count():
        return set()
    gpu: Any = torch.cuda.get_device_properties(device)
    address = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0"
    try:
        node = (system / "bus/pci/devices" / address / "numa_node").read_text().strip()
        # A machine with one node calls it -1.
        listed = (system / f"devices/system/node/node{node}/cpulist").read_text()
    except OSError:
        return set()
    cpus = _numbers(listed) & allowed
    if cpus:
        os.sched_setaffinity(0, cpus)
    return cpus


def _numbers(listed: str) -> set[int]:
    """Return the numbers of a list such as 0-15,32-47."""
    cpus: set[int] = set()
    for part in filter(None, listed.strip().split(",")):
        first, _, last = part.partition("-")
        cpus |= {*range(int(first), int(last or first) + 1)}
    return cpus
