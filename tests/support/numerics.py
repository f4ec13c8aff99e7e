"""Random inputs, the rounding of each dtype, and a function's values with its gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPS = 1e-5


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).double()


ROUNDINGS = 8
"""Between an input and a result each kernel rounds at most about this often, half a unit in the
last place (eps / 2) each: rms_norm's backward multiplies five times and sums eight products.
Wrong formulas differ in the first digits."""


def values_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return the output, then the gradient of every input for one upstream gradient."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    upstream = random(*out.shape).bfloat16().to(out.dtype)  # Exact in every dtype.
    gradients = torch.autograd.grad(out, inputs, upstream, allow_unused=True)
    return [out.detach(), *(g for g in gradients if g is not None)]
