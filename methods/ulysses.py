"""DeepSpeed-Ulysses with ZeRO-3 (Jacobs et al., arXiv 2309.14509).

Stream between blocks: a sequence shard. An all-to-all before attention trades tokens for heads, and
one after it trades back: each rank computes some heads over the whole sequence. All weights are
whole while they compute, and otherwise sharded by ZeRO-3.

With `tensor_parallel_size` a second axis cuts each block as `tp_sp` does, and the all-to-alls
exchange the heads of each of its ranks, as Megatron-LM's context parallelism of type a2a.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from methods import tp_sp
from odysseus.config.run import RunConfig
from odysseus.config.sizes import divisors
from odysseus.method import Method, check_intermediate_size, of_the_shard
from odysseus.model.decoder import Attention
from odysseus.model.experts import MixtureOfExperts, whole_mlp
from odysseus.model.kernels import Kernels
from odysseus.model.mlp import MLP
from odysseus.parallel.mesh import Mesh
from odysseus.parallel.ulysses import all_to_all_attend
from odysseus.parallel.ulysses_chunks import ChunkedAttention
from odysseus.parallel.yunchang import yunchang_all_to_all


def attention(run: RunConfig, mesh: Mesh, kernels: Kernels) -> Attention:
    """Build attention between all-to-alls if there are several ranks; with whole weights, or cut
    over a second axis."""
    if run.ulysses_head_chunks > 1:
        return ChunkedAttention(run.architecture, kernels, mesh.sequence, run.ulysses_head_chunks)
    exchange = {"native": all_to_all_attend, "yunchang": yunchang_all_to_all}[
        run.ulysses_all_to_all
    ]
    if mesh.sequence.size > 1:
        kernels = replace(kernels, attend=exchange(kernels.attend, mesh.sequence))
    if mesh.second is not None:
        return tp_sp.attention(run, mesh, kernels)
    return Attention(run.architecture, kernels)


def mlp(run: RunConfig, mesh: Mesh, kernels: Kernels) -> MLP | MixtureOfExperts:
    """Build the MLP, which computes on the shard with whole weights, or is cut over a second
    axis."""
    if mesh.second is not None:
        return tp_sp.mlp(run, mesh, kernels)
    return whole_mlp(run.architecture, kernels)


def positions(position_ids: Tensor, mesh: Mesh) -> Tensor:
    """Return the position ids of the tokens that a rank projects."""
    ids = of_the_shard if mesh.second is None else tp_sp.gather_positions
    return ids(position_ids, mesh)


def check(run: RunConfig) -> None:
    """Raise ValueError unless the heads per rank can be cut into `ulysses_head_chunks` chunks, and
    a block over a second axis."""
    if run.tensor_parallel_size > 1:
        _check_second_axis(run)
    chunks, n = run.ulysses_head_chunks, run.sequence_size
    if chunks == 1:
        return
    if run.ulysses_all_to_all != "native":
        raise ValueError(
            f"ulysses_all_to_all = {run.ulysses_all_to_all} does not support ulysses_head_chunks = "
            f"{chunks}; valid: native, or ulysses_head_chunks = 1"
        )
    heads = run.architecture.num_attention_heads // n
    kv_heads = max(1, run.architecture.num_key_value_heads // n)
    fitting = [c for c in divisors(heads) if c % kv_heads == 0 or kv_heads % c == 0]
    if chunks not in fitting:
        raise ValueError(
            f"ulysses_head_chunks = {chunks} does not divide the {heads} query and {kv_heads} kv "
            f"heads of a rank; valid: {', '.join(map(str, fitting))}"
        )


def _check_second_axis(run: RunConfig) -> None:
    for name, value, plain in (
        ("ulysses_head_chunks", run.ulysses_head_chunks, 1),
        ("overlap_chunks", run.overlap_chunks, 1),
        ("model.implementation", run.model.implementation, "native"),
    ):
        if value != plain:
            raise ValueError(
                f"{name} = {value} does not support tensor_parallel_size = "
                f"{run.tensor_parallel_size}; valid: {name} = {plain}, or tensor_parallel_size = 1"
            )
    check_intermediate_size(run)


METHOD = Method(
    name="ulysses", attention=attention, mlp=mlp, experts=True, positions=positions, check=check
)
