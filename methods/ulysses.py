"""DeepSpeed-Ulysses with ZeRO-3 (Jacobs et al., arXiv 2309.14509).

Stream between blocks: a sequence shard. Around attention an all-to-all trades tokens for heads:
every rank computes some heads over the whole sequence. All weights are whole in computation and
ZeRO-3 sharded at rest. B batch, S tokens, s = S/n, H query heads, G kv heads, h = H/n,
g = G/n (at least 1), K elements of a head.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from odysseus import collectives
from odysseus.attention import Attend
from odysseus.config import RunConfig
from odysseus.head_chunks import ChunkedAttention
from odysseus.kernels import Kernels
from odysseus.mesh import Axis, Mesh
from odysseus.method import Method
from odysseus.model import MLP, Attention
from odysseus.sizes import divisors


def attention(run: RunConfig, mesh: Mesh, kernels: Kernels) -> Attention:
    if run.ulysses_head_chunks > 1:
        return ChunkedAttention(run.architecture, kernels, mesh.sequence, run.ulysses_head_chunks)
    exchange = {"native": all_to_all_attend, "yunchang": yunchang_attend}[run.ulysses_all_to_all]
    if mesh.sequence.size > 1:
        kernels = replace(kernels, attend=exchange(kernels.attend, mesh.sequence))
    return Attention(run.architecture, kernels)


def mlp(run: RunConfig, mesh: Mesh, kernels: Kernels) -> nn.Module:
    return MLP(run.architecture, kernels)


def all_to_all_attend(attend: Attend, axis: Axis) -> Attend:
    """Attention over exchanged heads: q, k and v in one all-to-all, the output in another."""

    def exchanged(q_BsHK: Tensor, k_BsGK: Tensor, v_BsGK: Tensor) -> Tensor:
        # One copy packs what each rank gets; receiving, ranks are the leading part of S. No name
        # holds the copy, so that it is gone before attention begins.
        received_nBsFK = collectives.all_to_all(
            torch.cat(
                [collectives.heads_by_rank(x, axis.size) for x in (q_BsHK, k_BsGK, v_BsGK)], dim=3
            ),
            axis,
        )
        heads = [q_BsHK.shape[2] // axis.size] + 2 * [max(1, k_BsGK.shape[2] // axis.size)]
        o_BShK = attend(*collectives.unstack(received_nBsFK, 1).split(heads, dim=2))
        o_nBshK = collectives.all_to_all(collectives.stack(o_BShK, axis.size, 1), axis)
        return o_nBshK.movedim(0, 2).flatten(2, 3)

    return exchanged


def yunchang_attend(attend: Attend, axis: Axis) -> Attend:
    """The same exchange by yunchang: one all-to-all each for q, k, v and the output."""
    from yunchang.comm.all_to_all import SeqAllToAll4D

    def exchanged(q_BsHK: Tensor, k_BsGK: Tensor, v_BsGK: Tensor) -> Tensor:
        copies = max(1, axis.size // k_BsGK.shape[2])
        k_BsGK, v_BsGK = (x.repeat_interleave(copies, dim=2) for x in (k_BsGK, v_BsGK))
        q, k, v = (SeqAllToAll4D.apply(axis.group, x, 2, 1) for x in (q_BsHK, k_BsGK, v_BsGK))
        return SeqAllToAll4D.apply(axis.group, attend(q, k, v), 1, 2)

    return exchanged


def check(run: RunConfig) -> None:
    """Raise ValueError unless a rank's heads can be taken in as many chunks as the run says."""
    chunks, n = run.ulysses_head_chunks, run.sequence_size
    if chunks == 1:
        return
    if run.ulysses_all_to_all != "native":
        raise ValueError(
            f"ulysses_all_to_all = {run.ulysses_all_to_all} does not know ulysses_head_chunks = "
            f"{chunks}; valid: native, or ulysses_head_chunks = 1"
        )
    heads = run.architecture.num_attention_heads // n
    kv_heads = max(1, run.architecture.num_key_value_heads // n)
    fitting = [c for c in divisors(heads) if c % kv_heads == 0 or kv_heads % c == 0]
    if chunks not in fitting:
        raise ValueError(
            f"ulysses_head_chunks = {chunks} does not divide the {heads} query and {kv_heads} kv "
            f"heads of a rank; valid: {', '.join(map(str, fitting))}"
        )


METHOD = Method(name="ulysses", attention=attention, mlp=mlp, check=check)
