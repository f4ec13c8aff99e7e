"""Operations of a dry run that stand for a CUDA kernel, or for a value that the host reads."""

from __future__ import annotations

import torch
from torch import Tensor

LAUNCH, HOST_READS = "odysseus::launch", "odysseus::host_reads"

_library = torch.library.Library("odysseus", "DEF")
_library.define("launch(str name, Tensor[] reads, Tensor(a!)[] writes) -> ()")
_library.define("host_reads(Tensor x) -> ()")
for _name in ("launch", "host_reads"):
    _library.impl(_name, lambda *_: None, "CompositeExplicitAutograd")


def launch(name: str, reads: list[Tensor], writes: list[Tensor]) -> None:
    """Stand for one kernel that reads and writes these tensors, each once.

    Args:
        name: What a timeline calls it.
        writes: A tensor that it reads too is in both lists.
    """
    torch.ops.odysseus.launch(name, reads, writes)


def host_reads(x: Tensor) -> None:
    """Stand for ``x.item()``: the host waits for the device."""
    torch.ops.odysseus.host_reads(x)
