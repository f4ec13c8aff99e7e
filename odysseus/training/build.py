"""A run's model on one rank: kernels, method, tricks, loss and ZeRO, put together in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from odysseus.config.run import RunConfig
from odysseus.config.vocabulary import HEAD
from odysseus.memory.host_memory import HostMemory
from odysseus.memory.offload import CheckpointOffload
from odysseus.method import Method
from odysseus.model.decoder import Block, CausalLM, Edges, Tricks
from odysseus.model.kernels import Kernels
from odysseus.parallel import zero
from odysseus.parallel.chunked_block import OverlappedBlock
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ring import choose_ring
from odysseus.parallel.vocabulary import by_rank, choose_vocabulary

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
    with torch.device("meta"), _default_dtype(run.shard_dtype):
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
