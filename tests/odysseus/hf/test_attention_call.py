"""Checks of an attention call: once per kind of call, and every time for one that is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from odysseus.hf import attention_call
from odysseus.hf.attention_call import AttentionCall

SHAPE = torch.Size([2, 4, 24, 16])
ACCEPTED = AttentionCall(
    layer="LlamaAttention",
    model_type="llama",
    rope_type="default",
    longest_is_used=False,
    batch="split",
    query=SHAPE,
    key=SHAPE,
    value=SHAPE,
    dtype=torch.bfloat16,
    on_cuda=False,
    masked=False,
    causal=True,
    window=None,
    sinks=None,
    extras=(),
    sequence_size=2,
    ring_size=1,
)
NARROW = torch.Size([2, 4, 24, 12])
REFUSED: dict[str, dict[str, Any]] = {
    "family": {"model_type": "gemma2"},
    "rotary": {"rope_type": "dynamic"},
    "documents": {"batch": "plain"},
    "mesh": {"batch": "other mesh"},
    "softcap": {"extras": (("softcap", 50.0),)},
    "window": {"window": 0},
    "sinks": {"sinks": torch.Size([3])},
    "window's dtype": {"window": 8, "on_cuda": True, "dtype": torch.float32},
    "sinks' width": {"sinks": torch.Size([4]), "on_cuda": True, "query": NARROW, "key": NARROW},
    "all tokens": {"causal": False},
    "mask": {"masked": True},
    "cache": {"key": torch.Size([2, 4, 25, 16])},
    "heads": {"query": torch.Size([2, 1, 24, 16]), "key": torch.Size([2, 1, 24, 16])},
    "ring dtype": {"ring_size": 2, "on_cuda": True, "dtype": torch.float32},
    "ring width": {"ring_size": 2, "on_cuda": True, "query": NARROW, "key": NARROW},
    "values": {"value": NARROW},
}


@pytest.mark.parametrize("changed", REFUSED.values(), ids=REFUSED)
def test_refused_every_time(changed: dict[str, Any]) -> None:
    """Also after a call that is accepted and differs in this alone."""
    for _ in range(2):
        attention_call.check(ACCEPTED)
        with pytest.raises(ValueError, match=r"^LlamaAttention .*; valid: "):
            attention_call.check(replace(ACCEPTED, **changed))


def test_checked_once_per_kind_of_call() -> None:
    attention_call.check.cache_clear()
    for _ in range(3):
        attention_call.check(replace(ACCEPTED))
    assert attention_call.check.cache_info().misses == 1


def test_a_prepared_model_may_have_frequencies_by_length() -> None:
    attention_call.check(replace(ACCEPTED, rope_type="dynamic", longest_is_used=True))
