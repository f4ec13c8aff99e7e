"""Master weights in host memory only, as in ZeRO-Offload (arXiv 2101.06840).

The device keeps its shards in the compute dtype. Each gradient leaves it as soon as it is reduced,
on a stream of its own, so that the device holds the reduced gradients of two ZeRO units at most.
AdamW then runs on the host, and its weights go back in the compute dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from odysseus.config.run import RunConfig
from odysseus.memory.host_memory import HostMemory
from odysseus.memory.offload import CopyStream
from odysseus.parallel import sharding


class HostMasters:
    """AdamW on one rank's master weights in host memory.

    Args:
        named: The model's parameters by name, whose shards are in the compute dtype.
        add_square: Adds to a scalar in fp64 the squared norm of what this rank counts of a
            gradient; its arguments are the scalar, the parameter's name and the gradient.

    Attributes:
        weights: Master weights of each parameter's shard, by name, in the master dtype.
        gradients: Buffers of the same shapes, for the gradients.
        arrived: Those of the step so far, which are in their buffers or on the way there.
        squares: Squared norms of what this rank counts of them, [parameters] fp64.
        torch: PyTorch's optimizer; its parameters are the master weights.

    Raises:
        HostMemoryError: weights, gradients and moments do not fit in host memory.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        run: RunConfig,
        host: HostMemory,
        device: torch.device,
        add_square: Callable[[Tensor, str, Tensor], None],
    ) -> None:
        self.parameters, self._add_square = dict(named), add_square
        like = {
            name: torch.empty(shard.shape, dtype=run.master_dtype, device="meta")
            for name, shard in zip(self.parameters, self.shards, strict=True)
        }
        self.weights = {name: host.empty(shard) for name, shard in like.items()}
        self.gradients = {name: host.empty(shard) for name, shard in like.items()}
        host.claim(2 * sum(shard.nbytes for shard in like.values()))  # two moments
        self.arrived: dict[str, Tensor] = {}
        self.squares = torch.zeros(len(like), dtype=torch.float64, device=device)
        self._to_host, self._to_device = CopyStream(device), CopyStream(device)
        # By stream, FSDP2's or the one that computes: memory that is freed is reused on its own.
        self._leaving: dict[bool, list[Tensor]] = {True: [], False: []}
        for index, (name, parameter) in enumerate(self.parameters.items()):
            parameter.grad_dtype = run.master_dtype
            parameter.register_post_accumulate_grad_hook(partial(self._take, index, name))
        masters = [nn.Parameter(weight) for weight in self.weights.values()]
        self.torch = torch.optim.AdamW(masters, lr=run.optimizer.learning_rate, fused=True)

    @property
    def shards(self) -> list[Tensor]:
        """This rank's shards on the device, in the compute dtype."""
        return [sharding.local_shard(parameter)[0] for parameter in self.parameters.values()]

    def _take(self, index: int, name: str, parameter: nn.Parameter) -> None:
        """Start a gradient's way to the host; of a later micro step, with the sum so far added."""
        reduced, parameter.grad = parameter.grad, None
        assert reduced is not None
        gradient = sharding.local_shard(reduced)[0]
        leaving = self._leaving[isinstance(reduced, DTensor)]
        if leaving and _storage(gradient) != _storage(leaving[0]):
            self._to_host.wait()  # what has left is freed, and its memory reused
            leaving.clear()
        if name in self.arrived:
            self._to_host.wait()
            earlier = torch.empty_like(gradient)
            self._to_device.copy(earlier, self.arrived[name])
            self._to_device.wait()
            gradient += earlier
        self._add_square(self.squares[index].zero_(), name, reduced)
        self.arrived[name] = self.gradients[name]
        self._to_host.copy(self.gradients[name], gradient)
        leaving.append(gradient)

    def finish(self) -> None:
        """Make the host wait until all gradients have arrived."""
        self._to_host.finish()
        for leaving in self._leaving.values():
            leaving.clear()

    def drop(self) -> None:
        """Drop the gradients that arrived, as those of a step that is not taken."""
        self.finish()
        self._forget()

    def _forget(self) -> None:
        self.arrived.clear()
        self.squares.zero_()

    def update(self) -> None:
        """Apply the gradients that arrived, and send the weights to the device."""
        self.finish()
        masters = self.torch.param_groups[0]["params"]
        for name, master in zip(self.parameters, masters, strict=True):
            master.grad = self.arrived.get(name)
        self.torch.step()
        self.torch.zero_grad(set_to_none=True)
        self.send()
        self._forget()

    def send(self) -> None:
        """Copy the master weights to the device's shards."""
        for (name, weight), shard in zip(self.weights.items(), self.shards, strict=True):
            if weight.dtype != shard.dtype:  # a gradient's buffer is free, and may be page-locked
                weight = _as_dtype(self.gradients[name], shard.dtype).copy_(weight)
            shard.copy_(weight, non_blocking=True)


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _as_dtype(buffer: Tensor, dtype: torch.dtype) -> Tensor:
    """View the first bytes of a contiguous buffer as a tensor of its shape and a smaller dtype."""
    return buffer.view(-1).view(dtype)[: buffer.numel()].view(buffer.shape)
