"""The options of parallelism: the number of ranks, and the axes that they are laid out on."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple

from odysseus.config.option_group import OptionGroup, bounded
from odysseus.config.sizes import check_experts, check_ring, check_tensor, chunks_of


class TokenAxes(NamedTuple):
    """Ranks of the ring of keys and values, and ranks that divide the tokens of each ring rank."""

    ring: int
    within: int


@dataclass(frozen=True, kw_only=True)
class Parallelism(OptionGroup):
    """Parallelism: number of ranks, and the axes that they lie on.

    Args:
        world_size: Number of processes (ranks), one per GPU where there are GPUs.
        sequence_parallel_size: Ranks along the method's own axis, the sequence axis; 0 takes
            world_size / (ring_parallel_size x tensor_parallel_size).
        tensor_parallel_size: ulysses: ranks along a second axis, over which attention and MLP are
            cut as in tp_sp; Ulysses then exchanges the heads of each of its ranks. Neighbouring
            ranks differ along this axis.
        ring_parallel_size: Ranks along the axis of ring attention. The data-parallel size is
            world_size / (ring_parallel_size x sequence_parallel_size x tensor_parallel_size).
        ring_order: Which tokens each rank of the ring holds. zigzag cuts the sequence into 2R
            chunks and gives rank r of R chunks r and 2R-1-r, so that all ranks have the same causal
            work; contiguous cuts it into R chunks in order.
        ring_backend: Implementation of ring attention, also of tsp's. native passes keys and values
            from rank to rank while it computes; allgather gathers them once per pass (as Llama 3
            did); yunchang is that package's ring attention (CUDA with flash-attn).
        axis_order: Order in which ranks are numbered, slowest axis first: neighbouring ranks
            differ along the last axis, or along the tensor axis where there is one. The default
            keeps the sequence axis inside a node and lets the ring cross nodes.
        overlap_chunks: tp, tp_sp and odysseus: number of chunks that a block's tokens are cut into.
            The collective of one chunk runs beside the matmuls of another.
        ulysses_all_to_all: Implementation of Ulysses' exchange of tokens for heads. native packs q,
            k and v into one all-to-all; yunchang has one each for q, k, v and the output.
        vocab_parallel: Cut the embedding and the head by vocabulary over the sequence axis (over
            the tensor axis where there is one), as Megatron-LM does, instead of sharding them with
            ZeRO: embedding, head, or both (true). auto cuts what then sends fewer bytes.
        expert_parallel_size: MLP expert: neighbouring ranks that share out the experts, whatever
            axes they lie on; 0 takes as many as the sequence axis has.
    """

    world_size: int = bounded(1, default=1)
    sequence_parallel_size: int = bounded(0, default=0)
    tensor_parallel_size: int = bounded(1, default=1)
    ring_parallel_size: int = bounded(1, default=1)
    ring_order: Literal["zigzag", "contiguous"] = "zigzag"
    ring_backend: Literal["native", "allgather", "yunchang"] = "native"
    axis_order: Literal[
        "dp-ring-sp", "dp-sp-ring", "ring-dp-sp", "ring-sp-dp", "sp-dp-ring", "sp-ring-dp"
    ] = "dp-ring-sp"
    overlap_chunks: int = bounded(1, default=1)
    ulysses_all_to_all: Literal["native", "yunchang"] = "native"
    vocab_parallel: Literal["auto", "embedding", "head"] | bool = False
    expert_parallel_size: int = bounded(0, default=0)

    @property
    def sequence_size(self) -> int:
        """Ranks along the sequence axis, n."""
        others = self.ring_parallel_size * self.tensor_parallel_size
        return self.sequence_parallel_size or max(1, self.world_size // others)

    @property
    def cutting_ranks(self) -> int:
        """Ranks that weights are cut over: the tensor axis, or where it is 1 the sequence axis."""
        return self.axis_sizes[self.cutting_axis]

    @property
    def block_ranks(self) -> int:
        """Ranks that a block is spread over, without a ring: the sequence and the tensor axis."""
        return self.sequence_size * self.tensor_parallel_size

    @property
    def shards(self) -> int:
        """Ranks that one sample is split over: the ring, the sequence and the tensor axis."""
        return self.ring_parallel_size * self.block_ranks

    @property
    def data_parallel_size(self) -> int:
        """Replicas along the data-parallel axis."""
        return self.world_size // self.shards

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Ranks of each axis by its name, slowest first: dp, ring, sp, and tp if it is several."""
        replicas, ring = self.data_parallel_size, self.ring_parallel_size
        sizes = {"dp": replicas, "ring": ring, "sp": self.sequence_size}
        tensor = {"tp": self.tensor_parallel_size} if self.tensor_parallel_size > 1 else {}
        return {axis: sizes[axis] for axis in self.axis_order.split("-")} | tensor

    @property
    def cutting_axis(self) -> str:
        """Name of the axis that weights are cut over."""
        return "tp" if self.tensor_parallel_size > 1 else "sp"

    def place(self, rank: int, axis: str) -> int:
        """Return a rank's number on one of the axes of `axis_sizes`."""
        names, sizes = zip(*self.axis_sizes.items(), strict=True)
        at = names.index(axis)
        return rank // prod(sizes[at + 1 :]) % sizes[at]

    @property
    def ring_axis(self) -> str:
        """Name of the axis that keys and values go around."""
        return "ring"

    @property
    def token_axes(self) -> TokenAxes:
        """Return the two numbers of ranks that divide a sample's tokens."""
        ring = self.axis_sizes[self.ring_axis]
        return TokenAxes(ring, self.shards // ring)

    @property
    def seq_len_unit(self) -> int:
        """Tokens that seq_len must be a multiple of: (2 x ring if zigzag with a ring, else ring) x
        ranks within x overlap_chunks."""
        ring, within = self.token_axes
        return chunks_of(self.ring_order, ring) * within * self.overlap_chunks

    def check(self) -> None:
        """Raise ValueError if a field is below its bound or an axis does not divide the world."""
        super().check()
        check_ring(self.world_size, self.ring_parallel_size)
        check_tensor(self.world_size // self.ring_parallel_size, self.tensor_parallel_size)
        check_experts(self.world_size, self.expert_parallel_size)
