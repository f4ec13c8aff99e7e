"""Attention through yunchang (long-context-attention): its ring and its all-to-all."""

from __future__ import annotations

import torch
from torch import Tensor

from odysseus.model.attention import Attend
from odysseus.model.documents import Documents
from odysseus.parallel import transfers
from odysseus.parallel.mesh import Axis


def yunchang_ring(axis: Axis, order: str) -> Attend:
    """The ring attention inside yunchang's LongContextAttention, with flash-attn's kernels.

    The all-to-all around it there is `--ulysses_all_to_all yunchang` here.
    """
    from yunchang.hybrid.utils import RING_IMPL_DICT
    from yunchang.kernels import AttnType

    ring = RING_IMPL_DICT["zigzag" if order == "zigzag" else "basic"]

    def attend(
        q_BSHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        assert documents is None, "check has refused it"
        with transfers.region(axis):
            return ring(
                *(q_BSHK, k_BSGK, v_BSGK), causal=True, group=axis.group, attn_type=AttnType.FA
            )

    return torch.compiler.disable(attend)  # pyrefly: ignore


def yunchang_all_to_all(attend: Attend, axis: Axis) -> Attend:
    """Wrap attention in yunchang's all-to-alls: one each for q, k, v and the output."""
    from yunchang.comm.all_to_all import SeqAllToAll4D

    def exchanged(
        q_BsHK: Tensor, k_BsGK: Tensor, v_BsGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        copies = max(1, axis.size // k_BsGK.shape[2])
        k_BsGK, v_BsGK = (x.repeat_interleave(copies, dim=2) for x in (k_BsGK, v_BsGK))
        q, k, v = (SeqAllToAll4D.apply(axis.group, x, 2, 1) for x in (q_BsHK, k_BsGK, v_BsGK))
        return SeqAllToAll4D.apply(axis.group, attend(q, k, v, documents=documents), 1, 2)

    return exchanged
