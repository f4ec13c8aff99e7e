"""The layers that have weights: linear, embedding, head and norm.

A method passes in a linear layer's `project`: its linear map together with its communication.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odysseus.model.kernels import Kernels
from odysseus.model.loss import Loss, whole_logits
from odysseus.model.pending import Pending

Project = Callable[[Tensor, Tensor, Tensor | None], Pending]
"""project(x, weight, bias).wait() -> y: a linear map and its communication. The first call starts
the communication; `wait` finishes it and returns y."""


def unshared(weight: Tensor) -> Tensor:
    """Return the weight: no other rank holds a copy of its rows."""
    return weight


def local(x: Tensor, weight: Tensor, bias: Tensor | None) -> Pending:
    """Make a linear map without communication."""
    return Pending(partial(F.linear, x, weight, bias))


class Linear(nn.Module):
    """A linear layer with an uninitialised weight and the `project` that applies it.

    Args:
        shared: Function of weight and bias before `project` takes them, which changes no value. Its
            backward sums the gradients of ranks that hold copies of the same rows.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        bias: bool = False,
        project: Project = local,
        shared: Callable[[Tensor], Tensor] = unshared,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        self.bias = nn.Parameter(torch.empty(width_out)) if bias else None
        self.project, self.shared = project, shared

    def start(self, x: Tensor) -> Pending:
        """Start :meth:`forward`; the result's `wait` returns y."""
        return self.start_each([x])[0]

    def start_each(self, xs: Iterable[Tensor]) -> list[Pending]:
        """Start :meth:`forward` of several parts of the tokens; `shared` takes the weight once, so
        that its backward gets the sum of the parts' gradients."""
        weight = self.shared(self.weight)
        bias = None if self.bias is None else self.shared(self.bias)
        return [self.project(x, weight, bias) for x in xs]

    def forward(self, x: Tensor) -> Tensor:
        return self.start(x).wait()


Lookup = Callable[[Tensor, Tensor], Tensor]
"""lookup(input_ids_BS, weight_VD) -> the rows of the ids, [B, S, D]."""


@dataclass(frozen=True)
class Vocabulary:
    """A rank's rows of the embedding and of the head, and the functions that compute with them.

    Attributes:
        embedding_rows: Rows of the embedding's weight on this rank.
        head_rows: Rows of the head's weight on this rank.
        lookup: Finds the vectors of this rank's tokens.
        loss: Sums the losses of this rank's tokens.
    """

    embedding_rows: int
    head_rows: int
    lookup: Lookup = F.embedding
    loss: Loss = whole_logits


class Embedding(nn.Module):
    """A table of token vectors, uninitialised."""

    def __init__(self, width: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary.embedding_rows, width))
        self.lookup = vocabulary.lookup

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lookup(input_ids, self.weight)


class Head(nn.Module):
    """The projection to logits together with the loss, so that logits need never exist whole."""

    def __init__(self, width: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary.head_rows, width))
        self.loss = vocabulary.loss

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
