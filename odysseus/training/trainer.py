"""The trainer: a run's model on this rank, and its optimizer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from odysseus.config.run import RunConfig
from odysseus.config.vocabulary import HEAD
from odysseus.io import checkpoint
from odysseus.io.text import Batch
from odysseus.memory.host_memory import HostMemory
from odysseus.memory.offload import CheckpointOffload
from odysseus.method import Method
from odysseus.model.decoder import Block, CausalLM, Edges, Tricks
from odysseus.model.experts import MixtureOfExperts
from odysseus.model.kernels import Kernels, choose_kernels
from odysseus.model.loss import IGNORED_LABEL
from odysseus.model.router_losses import RouterLosses
from odysseus.parallel import sharding, transfers, zero
from odysseus.parallel.chunked_block import OverlappedBlock
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ring import choose_ring
from odysseus.parallel.vocabulary import by_rank, choose_vocabulary
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


Build = Callable[[RunConfig, Method, Mesh, HostMemory, Kernels], nn.Module]
"""A function with the arguments of :func:`build_model`."""


def build_model(
    run: RunConfig, method: Method, mesh: Mesh, host: HostMemory, kernels: Kernels
) -> CausalLM:
    """Build this rank's shards of a run's model, on the meta device, without values.

    The order is always the same: ring attention takes the place of the attention kernel; the method
    makes attention and MLP of the kernels, with its collectives around them; each block gets its
    tricks (tiles, inside recomputation, inside offload), or is taken in chunks of tokens; the head
    gets its loss; ZeRO-3 shards all weights, one unit per block; last, blocks are compiled.

    Args:
        run: The run, which decides all of these.
        method: The method that builds attention and MLP.
        mesh: The mesh that this rank belongs to.
        host: The account of what goes to host memory.
        kernels: The kernels of one rank; a ring replaces their attention.
    """
    model = build_unsharded(run, method, mesh, host, kernels)
    decoder = model.model
    units = zero.Units(decoder.embed_tokens, decoder.layers, [decoder.norm, model.lm_head])
    shard_and_compile(model, units, run, method, mesh)
    return model


def build_unsharded(
    run: RunConfig, method: Method, mesh: Mesh, host: HostMemory, kernels: Kernels
) -> CausalLM:
    """Build the model that :func:`build_model` then shards: kernels, method, tricks and loss."""
    if mesh.ring.size > 1:
        kernels = choose_ring(run, mesh.ring, kernels)
    all_tokens = method.replicated and HEAD in run.vocabulary_cuts
    leave = by_rank if all_tokens else method.leave
    edges = Edges(
        enter=lambda x: method.enter(x, mesh),
        leave=lambda x: leave(x, mesh),
        positions=lambda ids: method.positions(ids, mesh),
    )
    with torch.device("meta"), _default_dtype(run.master_dtype):
        return CausalLM(
            run.architecture,
            kernels=kernels,
            attention=lambda: method.attention(run, mesh, kernels),
            mlp=lambda: method.mlp(run, mesh, kernels),
            edges=edges,
            block=OverlappedBlock if run.overlap_chunks > 1 else Block,
            tricks=choose_tricks(run, mesh.device, host),
            vocabulary=choose_vocabulary(run, mesh, method.replicated),
        )


def shard_and_compile(
    model: nn.Module, units: zero.Units, run: RunConfig, method: Method, mesh: Mesh
) -> None:
    """Shard a model with ZeRO-3, in place; then compile its blocks if the run says so."""
    zero.shard(model, units, mesh, method.cuts(run), run)
    if run.compile:
        for block in units.blocks:
            assert isinstance(block, Block)
            block.layer = torch.compile(block.layer)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make this the dtype of new tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def choose_tricks(run: RunConfig, device: torch.device, host: HostMemory) -> Tricks:
    """Choose the memory tricks of a run's blocks."""
    in_chunks = run.ulysses_head_chunks > 1
    tricks = Tricks(
        tile_mlp=run.tiled_mlp_compute and not in_chunks,
        tile_after_attention=run.tiled_mlp_compute and in_chunks,
        recompute=run.recomputes,
        overlap_chunks=run.overlap_chunks,
    )
    if not run.activation_checkpoint_cpu_offload:
        return tricks
    offload = CheckpointOffload(host, device, run.architecture.num_hidden_layers)
    return replace(tricks, saved_input_hooks=offload.saved_input_hooks)


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
            HostMemoryError: shards are offloaded and do not fit in host memory.
        """
        run, device = self.run, self.mesh.device
        if run.parameter_offload == "cpu":  # the shards, and later their gradients
            shards = (sharding.local_shard(p)[0] for p in self.model.parameters())
            self.host.claim(2 * sum(shard.nbytes for shard in shards))
        if device.type == "meta":  # a dry run's weights have no values
            return
        self.model.to_empty(device=self._shards_device)
        if isinstance(self.model, CausalLM):
            self.model.tie()  # a weight that ZeRO does not manage has become one for each module
        checkpoint.load_or_initialize(self.local_pieces(), run)

    @property
    def _shards_device(self) -> torch.device:
        """The device of the shards and their gradients; a dry run has only meta."""
        device = self.mesh.device
        offloads = self.run.parameter_offload == "cpu" and device.type != "meta"
        return torch.device("cpu") if offloads else device

    @cached_property
    def optimizer(self) -> ShardedAdamW:
        """Return the optimizer, made at the first update."""
        return ShardedAdamW(self.model.parameters(), self.run, self.host)

    def step(self, batches: list[Batch]) -> StepResult:
        """Run forward, backward and update over the micro batches of one step."""
        loss = self.forward_backward(batches)
        grad_norm = self.grad_norm()
        self.optimizer.update()
        return StepResult(loss, grad_norm)

    def forward_backward(self, batches: list[Batch]) -> Tensor:
        """Accumulate the step's gradients; return the step's loss, a scalar in fp64.

        Raises:
            ValueError: no token of the step has a label, on any rank.
        """
        count = sum((batch.labels != IGNORED_LABEL).sum() for batch in batches)
        tokens = self._world_sum(torch.as_tensor(count, dtype=torch.float64))
        if not tokens.is_meta and tokens == 0:  # in a dry run, tokens has no value
            raise ValueError(
                f"all labels of a step are {IGNORED_LABEL}, on every rank; its loss is undefined"
            )
        loss = torch.zeros((), dtype=torch.float64, device=self.mesh.device)
        for batch in batches:
            with self.router_losses.over_forward() if self.router_losses else nullcontext():
                token_losses = self._losses(batch)
            (token_losses / tokens.to(token_losses.dtype)).backward()
            loss += token_losses.detach()
            if self.router_losses:  # the same on every rank
                loss += self.router_losses.value() * tokens / self.mesh.world.size
        return self._world_sum(loss) / tokens

    def grad_norm(self) -> Tensor:
        """Return the norm of the whole gradient; one rank owns and counts each element."""
        square = torch.zeros((), dtype=torch.float64, device=self._shards_device)
        for gradient in self._counted_gradients():
            square += euclidean_norm(gradient) ** 2
        return self._world_sum(square.to(self.mesh.device)).sqrt()

    def _counted_gradients(self) -> Iterator[Tensor]:
        """Yield the gradients that this rank counts: of experts all at once, else by piece."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is None:
                continue
            if ".experts." in name:
                yield sharding.local_shard(parameter.grad)[0]
                continue
            pieces = sharding.pieces(name, self.run.architecture, self.cuts)
            for piece, gradient in sharding.cut_rows(parameter.grad, pieces):
                if piece.owned:
                    yield gradient

    def local_pieces(self) -> Iterator[tuple[sharding.Piece, Tensor]]:
        """Yield (piece, view of the weight) for everything that this rank's shards hold."""
        return sharding.local_pieces(self.model, self.run.architecture, self.cuts)

    def gradients(self) -> Iterator[tuple[sharding.Piece, Tensor]]:
        """Yield (piece, view of the gradient) for everything that this rank's shards hold."""
        for name, parameter in self.model.named_parameters():
            pieces = sharding.pieces(name, self.run.architecture, self.cuts)
            if parameter.grad is not None:
                yield from sharding.cut_rows(parameter.grad, pieces)

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
