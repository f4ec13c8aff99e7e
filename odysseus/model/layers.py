"""The layers that have weights: linear, embedding, head and norm.

A method passes in a linear layer's `project`: its linear map together with its communication.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odysseus.model.kernels import Kernels
from odysseus.model.loss import Loss
from odysseus.model.pending import Pending

Project = Callable[[Tensor, Tensor, Tensor | None], Pending]
"""project(x, weight, bias).wait() -> y: a linear map and its communication. The first call starts
the communication; `wait` finishes it and returns y."""


def local(x: Tensor, weight: Tensor, bias: Tensor | None) -> Pending:
    """Make a linear map without communication."""
    return Pending(partial(F.linear, x, weight, bias))


class Linear(nn.Module):
    """A linear layer with an uninitialised weight and the `project` that applies it."""

    def __init__(
        self, width_in: int, width_out: int, bias: bool = False, project: Project = local
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        self.bias = nn.Parameter(torch.empty(width_out)) if bias else None
        self.project = project

    def start(self, x: Tensor) -> Pending:
        """Start :meth:`forward`; the result's `wait` returns y."""
        return self.project(x, self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.start(x).wait()


class Embedding(nn.Module):
    """A table of token vectors, uninitialised."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.embedding(input_ids, self.weight)


class Head(nn.Module):
    """The projection to logits together with the loss, so that logits need never exist whole."""

    def __init__(self, width: int, vocabulary: int, loss: Loss) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))
        self.loss = loss

    def forward(self, x_BSD: Tensor, labels_BS: Tensor) -> Tensor:
        return self.loss(x_BSD.flatten(0, 1), self.weight, labels_BS.flatten())


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float, kernels: Kernels) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.rms_norm = kernels.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.rms_norm(x, self.weight, self.eps)
