"""FlashAttention's functions are called as their pinned versions declare them, and what they return
is used as it is meant: on a CPU, with their signatures before PyTorch's own attention."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from odysseus.model import attention_choice, block_attention
from odysseus.model.attention import sdpa
from odysseus.model.block_attention import PACKAGES
from odysseus.model.documents import Documents
from tests.fake_cuda import signatures
from tests.support.paths import ROOT


def whole(*, q: Tensor, k: Tensor, v: Tensor, causal: bool, **_: Any) -> Tensor:
    assert causal
    return sdpa(q, k, v)


def by_document(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    **_: Any,
) -> Tensor:
    lengths = cu_seqlens_q.diff().tolist()
    assert causal
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == max_seqlen_k == max(lengths)
    documents = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    return torch.cat([sdpa(*(x.unsqueeze(0) for x in parts)).squeeze(0) for parts in documents])


def forward(*, q: Tensor, k: Tensor, v: Tensor, causal: bool, **given: Any) -> tuple[Any, ...]:
    assert given["softmax_scale"] == q.shape[-1] ** -0.5
    return *block_attention.CPU_FLASH.forward(q, k, v, causal), None, None


def backward(*, dq: Tensor, dk: Tensor, dv: Tensor, **given: Any) -> None:
    assert given["softmax_scale"] == given["q"].shape[-1] ** -0.5
    names = ("dout", "q", "k", "v", "out", "softmax_lse", "causal")
    of = block_attention.CPU_FLASH.backward(*(given[name] for name in names))
    for gradient, found in zip((dq, dk, dv), of, strict=True):
        gradient.copy_(found)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = {
        "flash_attn_func": whole,
        "flash_attn_varlen_func": by_document,
        "_flash_attn_forward": forward,
        "_flash_attn_backward": backward,
    }
    for name in ("flash_attn.flash_attn_interface", "flash_attn_interface"):
        monkeypatch.setitem(sys.modules, name, signatures.module_of(name, compute))
    monkeypatch.setitem(sys.modules, "flash_attn", sys.modules["flash_attn.flash_attn_interface"])


def tensors() -> list[Tensor]:
    return [torch.randn(2, 48, heads, 16, dtype=torch.float64) for heads in (4, 2, 2)]


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", PACKAGES)
def test_whole_sequences_and_documents(name: str) -> None:
    attend = attention_choice._of_package(name)
    q, k, v = tensors()
    torch.testing.assert_close(attend(q, k, v), sdpa(q, k, v))
    documents = Documents(((0, 10, 30), (0, 5)))
    expected = sdpa(q, k, v, documents=documents)
    torch.testing.assert_close(attend(q, k, v, documents=documents), expected)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", PACKAGES)
def test_blocks_of_a_ring(name: str) -> None:
    blocks = block_attention.choose_block_attention(name, torch.device("cuda"))
    q, k, v = tensors()
    found, expected = (
        blocks.forward(q, k, v, True),
        block_attention.CPU_FLASH.forward(q, k, v, True),
    )
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(q)
    of = blocks.backward(grad, q, k, v, *found, True)
    torch.testing.assert_close(
        of, block_attention.CPU_FLASH.backward(grad, q, k, v, *expected, True)
    )


def test_they_are_of_the_pinned_version() -> None:
    ((package, version),) = json.loads(signatures.KEPT.read_text())["pinned"].items()
    assert f"{package}=={version}\n" in (ROOT / "requirements-flash-attn.txt").read_text()
