"""AdamW on the plain local shards: on the device, or in host memory.

AdamW is elementwise and needs no DTensor arithmetic. When it is offloaded, host memory holds the
moments, a copy of the weights and a buffer for gradients; ZeRO gathers from the device's shards.
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

    Make it after the first forward: FSDP2 may move a shard into a padded buffer until then.

    Attributes:
        torch: PyTorch's optimizer; its parameters are the shards, or their copies on the host.

    Raises:
        HostMemoryError: the states are offloaded and do not fit in host memory.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], run: RunConfig, host: HostMemory
    ) -> None:
        self.parameters = list(parameters)
        self.shards = [sharding.local_shard(p)[0] for p in self.parameters]
        self.copies = run.optimizer_on_host and run.parameter_offload == "none"
        updated = self.shards
        if self.copies:
            self.gradients = [host.empty(shard) for shard in self.shards]
            updated = [host.empty(shard).copy_(shard) for shard in self.shards]
        if run.optimizer_on_host:
            host.claim(2 * sum(shard.nbytes for shard in updated))  # two moments
        parameters = [nn.Parameter(tensor) for tensor in updated]
        self.torch = torch.optim.AdamW(parameters, lr=run.optimizer.learning_rate, fused=True)

    def update(self) -> None:
        """Apply the parameters' gradients and free them."""
        updated = self.torch.param_groups[0]["params"]
        for index, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            gradient = sharding.local_shard(parameter.grad)[0]
            if self.copies:
                gradient = self.gradients[index].copy_(gradient)
            updated[index].grad, parameter.grad = gradient, None
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        if self.copies:
            for shard, copy in zip(self.shards, updated, strict=True):
                shard.copy_(copy.detach(), non_blocking=True)
