"""The layers that have weights: linear, embedding, head and norm.

A linear layer's `project` is how its weight meets its input, which a method passes in.
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
"""project(x, weight, bias).wait() -> y: a linear map with its communication, which the first call
starts and the second one ends."""


def local(x: Tensor, weight: Tensor, bias: Tensor | None) -> Pending:
    """The linear map alone."""
    return Pending(partial(F.linear, x, weight, bias))


class Linear(nn.Module):
    """A weight, uninitialised, and the way its input meets it."""

    def __init__(
        self, width_in: int, width_out: int, bias: bool = False, project: Project = local
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        self.bias = nn.Parameter(torch.empty(width_out)) if bias else None
        self.project = project

    def start(self, x: Tensor) -> Pending:
        """Start :meth:`forward`; wait for y later."""
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
    """The projection to logits and the loss on them, which no caller ever sees apart."""

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
