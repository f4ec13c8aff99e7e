"""DTensor and functional collectives, which take fake tensors for a compiler's.

A compiler's DTensor looks up no sharding that it has found before; a script's does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from torch.distributed import _functional_collectives
from torch.distributed.tensor import (
    _collective_utils,
    _decompositions,
    _dispatch,
    _redistribute,
    _sharding_prop,
)

_MODULES = (
    _functional_collectives,
    _collective_utils,
    _decompositions,
    _dispatch,
    _redistribute,
    _sharding_prop,
)


def replaced() -> Iterator[Any]:
    """Yield the patches of PyTorch, to be entered."""
    for module in _MODULES:
        yield patch.object(module, "_are_we_tracing", lambda: False)
    # A collective of one rank is done at once: its result needs no wrapper that waits.
    wait = _functional_collectives.wait_tensor
    yield patch.object(_functional_collectives, "_maybe_wrap_tensor", wait)
