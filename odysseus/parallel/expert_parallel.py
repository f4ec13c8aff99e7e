"""Experts shared out over ranks: rows of tokens travel to the ranks of their experts and back.

One all-to-all each way, of as many rows as the router decides (Lepikhin et al., arXiv 2006.16668).
Where tensors have no values, in a dry run, each expert gets a given share of every rank's rows.

T tokens of this rank, K experts of a token, R = T·K rows of its tokens, Q rows of its experts, E
experts of all n ranks, e = E/n of this rank, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odysseus.config.architecture import Architecture
from odysseus.config.router_load import Shares, rows_of_ranks
from odysseus.model.experts import Experts
from odysseus.model.grouped import Rows
from odysseus.model.kernels import Kernels
from odysseus.parallel import collectives, transfers
from odysseus.parallel.mesh import Axis


@dataclass(frozen=True)
class Exchange:
    """The rows that ranks send one another.

    Attributes:
        sent: Rows for each rank.
        received: Rows from each rank.
        experts_Q: Number of each received row's expert among this rank's, int64.
    """

    sent: list[int]
    received: list[int]
    experts_Q: Tensor
    axis: Axis

    @staticmethod
    def of(rows: Rows, axis: Axis, shares: Shares) -> Exchange:
        """Tell every rank how many rows each of its experts gets; the host waits for the sizes.

        Args:
            shares: Each expert's share of the rows, for tensors without values.
        """
        zero = rows.ends_E.new_zeros(1)
        counts_nE = rows.ends_E.diff(prepend=zero).long().unflatten(0, (axis.size, -1))
        received_nE = transfers.all_to_all_plain(counts_nE, axis)
        if received_nE.is_meta:
            sent = rows_of_ranks(len(rows.order_R), shares, axis.size)
            received = [sent[axis.rank]] * axis.size
        else:
            sent, received = torch.stack([counts_nE.sum(1), received_nE.sum(1)]).tolist()
        numbers_nE = torch.arange(counts_nE.shape[1], device=counts_nE.device).expand_as(counts_nE)
        experts_Q = numbers_nE.flatten().repeat_interleave(
            received_nE.flatten(), output_size=sum(received)
        )
        return Exchange(sent, received, experts_Q, axis)

    def to_experts(self, x_RW: Tensor) -> Tensor:
        """Send rows to the ranks of their experts, [Q, W] of [R, W]."""
        return _moved(x_RW, self.sent, self.received, self.axis)

    def to_owners(self, x_QW: Tensor) -> Tensor:
        """Send rows back to the ranks of their tokens, [R, W] of [Q, W]."""
        return _moved(x_QW, self.received, self.sent, self.axis)


class ExpertsOfRanks(Experts):
    """This rank's experts, for the tokens of all ranks of an axis.

    Args:
        shares: Each expert's share of the rows in a dry run.
    """

    def __init__(
        self, architecture: Architecture, kernels: Kernels, axis: Axis, shares: Shares
    ) -> None:
        a = architecture
        count = a.num_experts // axis.size
        super().__init__(a, kernels, count=count, width=a.intermediate_size)
        self.axis, self.shares = axis, shares

    def forward(self, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
        """[T, D]: :meth:`Experts.forward` of this rank's tokens, by the experts of all ranks."""
        rows = Rows.by_expert(experts_TK, self.count * self.axis.size)
        exchange = Exchange.of(rows, self.axis, self.shares)
        x_QD = exchange.to_experts(rows.spread(x_TD))
        weight_Q1 = exchange.to_experts(rows.in_order(weights_TK))
        own = Rows.by_expert(exchange.experts_Q.unsqueeze(1), self.count)
        y_QD = own.collect(self.compute(own.spread(x_QD), own.in_order(weight_Q1), own))
        return rows.collect(exchange.to_owners(y_QD))


def _moved(x_RW: Tensor, sent: list[int], received: list[int], axis: Axis) -> Tensor:
    width = x_RW.shape[1]
    to_ranks, from_ranks = ([count * width for count in counts] for counts in (sent, received))
    moved = collectives.all_to_all_uneven(x_RW.flatten(), to_ranks, from_ranks, axis)
    return moved.unflatten(0, (-1, width))
