"""The trainer: a run's model on this rank, and its optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.io.text import Batch
from odysseus.memory.host_memory import HostMemory, host_allocation
from odysseus.memory.readback import Readback
from odysseus.method import Method
from odysseus.model.decoder import CausalLM
from odysseus.model.experts import MixtureOfExperts
from odysseus.model.kernels import Kernels, choose_kernels
from odysseus.model.loss import IGNORED_LABEL
from odysseus.model.router_losses import RouterLosses
from odysseus.parallel import sharding, transfers
from odysseus.parallel.mesh import Mesh
from odysseus.training.build import Build, build_model
from odysseus.training.masters import HostMasters
from odysseus.training.optimizer import ShardedAdamW


@dataclass(frozen=True)
class StepResult:
    """Results of one step, the same numbers on every rank.

    Attributes:
        loss: Sum of token losses / tokens of the step, over all ranks, plus the routers' losses.
            Scalar, fp64.
        grad_norm: Euclidean norm of the whole gradient. Scalar, fp64.
    """

    loss: Tensor
    grad_norm: Tensor


def _token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return the sum of a batch's token losses on this rank, a scalar."""
    return model(batch.input_ids, batch.position_ids, batch.labels, batch.documents)


class Trainer:
    """Model, optimizer and step of one run on one rank.

    Args:
        kernels: The kernels; by default those of the run's model options on this device.
        build: Builds the model, unless Transformers does.

    Attributes:
        cuts: The weights that are cut, and this rank's part of them.
        masters: The master weights, if they are in host memory alone.
    """

    def __init__(
        self,
        run: RunConfig,
        method: Method,
        mesh: Mesh,
        kernels: Kernels | None = None,
        build: Build = build_model,
    ) -> None:
        self.run, self.method, self.mesh = run, method, mesh
        self.cuts = mesh.cuts(method.cuts(run))
        self.host = HostMemory.for_run(run, mesh.device)
        self.masters: HostMasters | None = None
        self.model: nn.Module
        if run.model.implementation == "transformers":
            from odysseus.hf import model as hf_model  # takes seconds

            self.model = model = hf_model.build(run, mesh, self.host)
            self._fill()
            hf_model.fill_buffers(model)
            self._losses = partial(hf_model.token_losses, model, mesh)
        else:
            kernels = kernels or choose_kernels(
                run.model, mesh.device, run.compute_dtype, run.architecture.head_dim
            )
            self.model = build(run, method, mesh, self.host, kernels)
            self._fill()
            self._losses = partial(_token_losses, self.model)
        self.router_losses = self._choose_router_losses()

    def _choose_router_losses(self) -> RouterLosses | None:
        """Give the routers, if the model's have losses, one account of them."""
        a, mesh = self.run.architecture, self.mesh
        has_losses = a.router_aux_loss_coef or a.router_z_loss_coef
        if not has_losses or not isinstance(self.model, CausalLM):  # blocks alone have no loss
            return None
        add = partial(transfers.all_reduce_plain, axis=mesh.world)
        losses = RouterLosses(a, mesh.device, add, self.run.gradient_accumulation_steps)
        for module in self.model.modules():
            if isinstance(module, MixtureOfExperts):
                module.losses = losses
        return losses

    def _fill(self) -> None:
        """Allocate the shards, and initialise them or read them from the run's checkpoint.

        No rank ever holds more of a weight than its shard.

        Raises:
            HostMemoryError: shards or masters are in host memory and do not fit there.
        """
        run, device = self.run, self.mesh.device
        if run.parameter_offload == "cpu":  # the shards, and later their gradients
            shards = (sharding.local_shard(p)[0] for p in self.model.parameters())
            self.host.claim(2 * sum(shard.nbytes for shard in shards))
        has_values = device.type != "meta"  # a dry run's weights have none
        if has_values:
            with host_allocation() if self._shards_device != device else nullcontext():
                self.model.to_empty(device=self._shards_device)
            if isinstance(self.model, CausalLM):
                self.model.tie()  # a weight that ZeRO does not manage is now one for each module
        if run.masters_on_host:
            named = self.model.named_parameters()
            self.masters = HostMasters(named, run, self.host, device, self._add_square)
        if has_values:
            checkpoint.load_or_initialize(self.local_pieces(), run)
            if self.masters:
                self.masters.send()

    @property
    def _shards_device(self) -> torch.device:
        """The device of the shards and their gradients; a dry run has only meta."""
        device = self.mesh.device
        offloads = self.run.parameter_offload == "cpu" and device.type != "meta"
        return torch.device("cpu") if offloads else device

    @cached_property
    def optimizer(self) -> ShardedAdamW | HostMasters:
        """Return the optimizer, made at the first update unless it has the master weights."""
        return self.masters or ShardedAdamW(self.model.parameters(), self.run, self.host)

    def step(self, batches: list[Batch]) -> StepResult:
        """Run forward, backward and update over the micro batches of one step."""
        loss = self.forward_backward(batches)
        grad_norm = self.grad_norm()
        self.optimizer.update()
        return StepResult(loss, grad_norm)

    def forward_backward(self, batches: list[Batch]) -> Tensor:
        """Accumulate the step's gradients; return the step's loss, a scalar in fp64.

        Raises:
            ValueError: no token of the step has a label, on any rank. All gradients are dropped.
        """
        count = sum((batch.labels != IGNORED_LABEL).sum() for batch in batches)
        tokens = self._world_sum(torch.as_tensor(count, dtype=torch.float64))
        counted = None if tokens.is_meta else Readback(tokens)  # a dry run has no values
        loss = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        for batch in batches:
            with self.router_losses.over_forward() if self.router_losses else nullcontext():
                token_losses = self._losses(batch)
            (token_losses / tokens.to(token_losses.dtype)).backward()
            loss += token_losses.detach()
            if self.router_losses:  # the same on every rank
                loss += self.router_losses.value() * tokens / self.mesh.world.size
        step_loss = self._world_sum(loss) / tokens
        if counted is not None and counted.wait() == 0:  # while the GPU has a whole step to do
            self.zero_grad()
            raise ValueError(
                f"all labels of a step are {IGNORED_LABEL}, on every rank; its loss is undefined"
            )
        return step_loss

    def grad_norm(self) -> Tensor:
        """Return the norm of the whole gradient; one rank owns and counts each element."""
        if self.masters:
            square = self.masters.squares.sum()
        else:
            square = torch.zeros((), dtype=torch.float64, device=self._shards_device)
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None:
                    self._add_square(square, name, parameter.grad)
        return self._world_sum(square.to(self.mesh.device)).sqrt()

    def _add_square(self, square: Tensor, name: str, gradient: Tensor) -> None:
        """Add the squared norm of what this rank counts of a gradient to a scalar in fp64."""
        if ".experts." in name:  # all at once, else by piece
            counted = [sharding.local_shard(gradient)[0]]
        else:
            pieces = sharding.cut_rows(gradient, self._pieces(name))
            counted = [view for piece, view in pieces if piece.owned]
        for view in counted:
            square += euclidean_norm(view) ** 2

    def _pieces(self, name: str) -> list[sharding.Piece]:
        return sharding.pieces(name, self.run.architecture, self.cuts)

    def local_pieces(self) -> Iterator[tuple[sharding.Piece, Tensor]]:
        """Yield (piece, view of the weight) for everything that this rank's shards hold: of master
        weights, if they are in host memory alone."""
        weights = self.masters.weights if self.masters else {}
        for name, parameter in self.model.named_parameters():
            yield from sharding.cut_rows(parameter, self._pieces(name), weights.get(name))

    def gradients(self) -> Iterator[tuple[sharding.Piece, Tensor]]:
        """Yield (piece, view of the gradient) for everything that this rank's shards hold."""
        on_host = {}
        if self.masters:
            self.masters.finish()
            on_host = self.masters.arrived
        for name, parameter in self.model.named_parameters():
            if name in on_host:
                yield from sharding.cut_rows(parameter, self._pieces(name), on_host[name])
            elif parameter.grad is not None:
                yield from sharding.cut_rows(parameter.grad, self._pieces(name))

    def zero_grad(self) -> None:
        """Drop the gradients so far, which :meth:`step` would add to."""
        self.model.zero_grad(set_to_none=True)
        if self.masters:
            self.masters.drop()

    def _world_sum(self, value: Tensor) -> Tensor:
        transfers.all_reduce_plain(value, self.mesh.world)
        return value


def euclidean_norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of x, a scalar in fp64.

    Each row is summed in fp32 (in fp64 if x is fp64), for which kernels are vectorised. On a CPU
    that takes half the time of a sum in fp64, and is exact to 1e-7 because rows are short.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    row_norms = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
    return torch.linalg.vector_norm(row_norms, dtype=torch.float64)
