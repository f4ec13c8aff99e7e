"""AdamW on the plain local shards: on the device, or in host memory.

It is elementwise and needs no DTensor arithmetic. Offloaded, host memory holds the moments, a copy
of the weights and a buffer for gradients; the device's shards are what the next step gathers from.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import HostMemory
from odysseus.parallel import sharding


class ShardedAdamW:
    """AdamW with PyTorch's default betas and weight decay over one rank's shards.

    Make it after the first forward: FSDP2 may move a shard into a padded buffer before that.

    Attributes:
        torch: The optimizer itself; its parameters are the shards, or their copies on the host.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], run: RunConfig, host: HostMemory
    ) -> None:
        self.parameters = list(parameters)
        self.shards = [sharding.local_shard(p)[0] for p in self.parameters]
        self.copies = run.optimizer_on_host and run.parameter_offload == "none"
        held = self.shards
        if self.copies:
            self.gradients = [host.empty(shard) for shard in held]
            held = [host.empty(shard).copy_(shard) for shard in held]
        if run.optimizer_on_host:
            host.claim(2 * sum(shard.nbytes for shard in held))  # two moments
        own = [nn.Parameter(tensor) for tensor in held]
        self.torch = torch.optim.AdamW(own, lr=run.optimizer.learning_rate, fused=True)

    def update(self) -> None:
        """Apply the parameters' gradients and let go of them."""
        own = self.torch.param_groups[0]["params"]
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            gradient = sharding.local_shard(parameter.grad)[0]
            if self.copies:
                gradient = self.gradients[index].copy_(gradient)
            own[index].grad, parameter.grad = gradient, None
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        if self.copies:
            for shard, copy in zip(self.shards, own, strict=True):
                shard.copy_(copy.detach(), non_blocking=True)
