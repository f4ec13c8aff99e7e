"""The all-to-alls of Ulysses around attention: from sharded tokens to sharded heads and back.

Heads that do not divide are shared as evenly as can be, so ranks send and compute unequal parts.

B batch, S tokens, s = S/n of this rank, H query heads, G kv heads, h = H/n, K elements of a head, F
heads of this rank packed: h + 2·max(1, G/n).
"""

from __future__ import annotations

import torch
from torch import Tensor

from odysseus.config.sizes import attended, divides, shares
from odysseus.model.attention import Attend
from odysseus.model.documents import Documents
from odysseus.parallel import collectives, transfers
from odysseus.parallel.mesh import Axis


def all_to_all_attend(attend: Attend, axis: Axis) -> Attend:
    """Wrap attention in two all-to-alls: one for q, k and v, one for the output."""

    def exchanged(
        q_BsHK: Tensor, k_BsGK: Tensor, v_BsGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        heads, kv_heads = q_BsHK.shape[2], k_BsGK.shape[2]
        if not divides(heads, kv_heads, axis.size):
            return _uneven(attend, axis, q_BsHK, k_BsGK, v_BsGK, documents)
        # One copy packs the heads for each rank. In the received tensor the ranks are the leading
        # part of S. No name holds the copy, so that it is freed before attention begins.
        received_nBsFK = collectives.all_to_all(
            torch.cat(
                [collectives.heads_by_rank(x, axis.size) for x in (q_BsHK, k_BsGK, v_BsGK)], dim=3
            ),
            axis,
        )
        local_heads = [heads // axis.size] + 2 * [max(1, kv_heads // axis.size)]
        o_BShK = attend(
            *transfers.unstack(received_nBsFK, 1).split(local_heads, dim=2), documents=documents
        )
        o_nBshK = collectives.all_to_all(transfers.stack(o_BShK, axis.size, 1), axis)
        return o_nBshK.movedim(0, 2).flatten(2, 3)

    return exchanged


def _uneven(
    attend: Attend,
    axis: Axis,
    q_BsHK: Tensor,
    k_BsGK: Tensor,
    v_BsGK: Tensor,
    documents: Documents | None,
) -> Tensor:
    """Attend with unequal shares of heads; every rank sends each other one what it computes."""
    (batch, tokens, heads, width), kv_heads = q_BsHK.shape, k_BsGK.shape[2]
    of_ranks = shares(heads, kv_heads, axis.size)
    parts = [
        torch.cat([q_BsHK[:, :, a:b], k_BsGK[:, :, c:d], v_BsGK[:, :, c:d]], dim=2).flatten()
        for (a, b), (c, d) in (((q.start, q.stop), (kv.start, kv.stop)) for q, kv in of_ranks)
    ]
    q, kv = of_ranks[axis.rank]
    own_elements = batch * tokens * (len(q) + 2 * len(kv)) * width
    received = collectives.all_to_all_uneven(
        torch.cat(parts), [part.numel() for part in parts], [own_elements] * axis.size, axis
    )
    packed_BSFK = transfers.unstack(received.view(axis.size, batch, tokens, -1, width), 1)
    q_BShK, k_BSgK, v_BSgK = packed_BSFK.split([len(q), len(kv), len(kv)], dim=2)
    places = attended(q, kv, heads // kv_heads)
    if len(places) > len(kv):
        k_BSgK, v_BSgK = k_BSgK[:, :, places], v_BSgK[:, :, places]
    o_BShK = attend(q_BShK, k_BSgK, v_BSgK, documents=documents)
    sizes = [batch * tokens * len(q) * width for q, _ in of_ranks]
    sent = transfers.stack(o_BShK, axis.size, 1).flatten()
    outputs = collectives.all_to_all_uneven(sent, [sizes[axis.rank]] * axis.size, sizes, axis)
    return torch.cat([o.view(batch, tokens, -1, width) for o in outputs.split(sizes)], dim=2)
