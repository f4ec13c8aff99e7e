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
from odysseus.kernels import Kernels
from odysseus.mesh import Axis, Mesh
from odysseus.method import Method
from odysseus.model import MLP, Attention


def attention(run: RunConfig, mesh: Mesh, kernels: Kernels) -> nn.Module:
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
            torch.cat([_by_rank(x, axis) for x in (q_BsHK, k_BsGK, v_BsGK)], dim=3), axis
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


def _by_rank(x_BsHK: Tensor, axis: Axis) -> Tensor:
    """[n, B, s, h, K]: the heads that each rank computes, as a view. A kv head that several ranks
    need appears once for each of them, and no more often."""
    copies = max(1, axis.size // x_BsHK.shape[2])
    x_BsGcK = x_BsHK.unsqueeze(3).expand(-1, -1, -1, copies, -1)
    if copies == 1:
        return x_BsHK.unflatten(2, (axis.size, -1)).movedim(2, 0)
    return x_BsGcK.movedim((2, 3), (0, 1)).flatten(0, 1).unsqueeze(3)


METHOD = Method(name="ulysses", attention=attention, mlp=mlp)
