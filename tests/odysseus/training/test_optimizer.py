"""AdamW over shards against its published formula, step by step.

The first step cannot tell the betas (its bias corrections cancel them), so five are taken. fp64
numbers of order 1: the tolerance is 1e-14.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from odysseus.config.nested import OptimizerOptions
from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import HostMemory
from odysseus.training.optimizer import ShardedAdamW
from tests.support.adamw import adamw


@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_five_steps_follow_the_formula(offload: str) -> None:
    made = torch.Generator().manual_seed(0)
    start, *gradients = torch.randn(6, 4, 3, generator=made, dtype=torch.float64)
    gradients[3] *= 1e-7  # small enough for eps to count
    parameter = nn.Parameter(start.clone())
    options = OptimizerOptions(learning_rate=0.05, offload=offload)
    host = HostMemory(10**6, torch.device("cpu"))
    optimizer = ShardedAdamW([parameter], RunConfig(optimizer=options), host)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.update()
        assert parameter.grad is None
    assert (parameter - adamw(start, gradients, 0.05)).abs().max() < 1e-14
    assert (host.held_bytes > 0) == (offload == "cpu")
