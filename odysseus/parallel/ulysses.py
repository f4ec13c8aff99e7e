"""The all-to-alls of Ulysses around attention: from sharded tokens to sharded heads and back.

B batch, S tokens, s = S/n of this rank, H query heads, G kv heads, h = H/n, K elements of a head, F
heads of this rank packed: h + 2·max(1, G/n).
"""

from __future__ import annotations

import torch
from torch import Tensor

from odysseus.model.attention import Attend
from odysseus.model.documents import Documents
from odysseus.parallel import collectives, transfers
from odysseus.parallel.mesh import Axis


def all_to_all_attend(attend: Attend, axis: Axis) -> Attend:
    """Wrap attention in two all-to-alls: one for q, k and v, one for the output."""

    def exchanged(
        q_BsHK: Tensor, k_BsGK: Tensor, v_BsGK: Tensor, *, documents: Documents | None = None
    ) -> Tensor:
        # One copy packs the heads for each rank. In the received tensor the ranks are the leading
        # part of S. No name holds the copy, so that it is freed before attention begins.
        received_nBsFK = collectives.all_to_all(
            torch.cat(
                [collectives.heads_by_rank(x, axis.size) for x in (q_BsHK, k_BsGK, v_BsGK)], dim=3
            ),
            axis,
        )
        heads = [q_BsHK.shape[2] // axis.size] + 2 * [max(1, k_BsGK.shape[2] // axis.size)]
        o_BShK = attend(
            *transfers.unstack(received_nBsFK, 1).split(heads, dim=2), documents=documents
        )
        o_nBshK = collectives.all_to_all(transfers.stack(o_BShK, axis.size, 1), axis)
        return o_nBshK.movedim(0, 2).flatten(2, 3)

    return exchanged
