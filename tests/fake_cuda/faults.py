"""Mistakes of code that runs on a GPU, each of which a test must find."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch.nn.functional as F
from torch import Tensor

from odysseus.memory.offload import CopyStream
from odysseus.training import trainer


def _copy_at_once(stream: CopyStream, target: Tensor, source: Tensor) -> None:
    with stream.module.stream(stream.stream):
        target.copy_(source, non_blocking=True)


def _norm_that_is_read(x: Tensor) -> Tensor:
    norm = _norm(x)
    norm.item()
    return norm


def _keys_before_queries(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    return _attention(k, q, v, **options)


_norm, _attention = trainer.euclidean_norm, F.scaled_dot_product_attention
FAULTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "none": nullcontext,
    "no wait for copies": partial(patch.object, CopyStream, "wait", lambda stream: None),
    "copies begin at once": partial(patch.object, CopyStream, "copy", _copy_at_once),
    "a value is read": partial(patch.object, trainer, "euclidean_norm", _norm_that_is_read),
    "keys before queries": partial(
        patch.object, F, "scaled_dot_product_attention", _keys_before_queries
    ),
}
