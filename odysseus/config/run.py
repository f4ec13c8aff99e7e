"""Everything a run can be told, its defaults, and what is valid.

The command line and YAML files are generated from these fields, their types and docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from odysseus.config import hf_config
from odysseus.config.architecture import Architecture, changed, preset
from odysseus.config.groups import DataOptions, ModelOptions, OptimizerOptions
from odysseus.config.sizes import check_axes, check_multiple, chunks_of

_LOWEST = {"world_size": 1, "sequence_parallel_size": 0, "ring_parallel_size": 1, "seq_len": 1}
_LOWEST |= {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "reduce_bucket_size": 0}
_LOWEST |= {"host_memory_limit_bytes": 0, "tiled_loss_bytes": 1, "ulysses_head_chunks": 1}
_LOWEST |= {"overlap_chunks": 1}
_LOWEST |= {"steps": 1, "warmup_steps": 0, "seed": 0, "timeout_s": 1, "rank": -1}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One cell of the benchmark: a method, a model, a sequence length and a number of processes.

    Args:
        method: How a block is spread over the ranks of the sequence axis. In run and sweep also
            peer:NAME, another implementation, NAME being one of docs/performance.md.
        model: Which model.
        world_size: Processes; one GPU each where there are GPUs.
        sequence_parallel_size: Ranks of the method's own axis; 0 takes all that
            ring_parallel_size leaves of world_size.
        ring_parallel_size: Ranks of the ring-attention axis. What both axes leave of world_size
            are data-parallel replicas.
        ring_order: Which tokens a rank of the ring has. With zigzag the sequence is 2R chunks and
            rank r of R has chunks r and 2R-1-r, so that all have the same causal work; with
            contiguous it is R chunks in order.
        ring_backend: How keys and values get around: native passes them on while it computes,
            allgather gathers them once a pass (as Llama 3 did), yunchang is that package's ring
            (CUDA with flash-attn).
        axis_order: How ranks are numbered, the slowest axis first: ranks of the last axis are
            neighbours, so that the sequence axis stays inside a node and the ring goes across.
        seq_len: Tokens of one whole sample.
        micro_batch_size: Samples a data-parallel replica takes per micro step.
        gradient_accumulation_steps: Micro steps per optimizer step.
        dtype: Compute dtype of the parameters. With bf16 the optimizer keeps fp32 shards.
        seq_parallel_communication_data_type: Dtype in which gradients are reduced between
            ranks (fp64 runs reduce in fp64).
        reduce_bucket_size: Elements of the largest gradient reduction; 0 reduces a whole ZeRO unit
            (a block, the embedding, the head) at once. Bounds the memory that reducing in
            another dtype takes.
        zero_prefetch: Gather the next ZeRO unit's weights while this one computes (on a GPU);
            without it they are gathered when they are needed, and one unit's fewer are held.
        reshard_after_forward: Free a block's gathered weights after its forward and gather them
            again in backward; false keeps them between, all blocks' at once.
        zero_engine: Who gathers ZeRO's weights and sums its gradients. fsdp2 hides both behind
            what computes on a GPU and waits for each on a CPU; overlap hides them on a CPU too.
        activation_checkpointing: Recompute each block in backward, keeping only its input.
        activation_checkpoint_cpu_offload: Keep those inputs in host memory (implies the former).
        host_memory_limit_bytes: Host memory that offloading may take on one node; 0 is 90% of what
            the machine has. A cell that needs more becomes a row with status oom_cpu.
        tiled_mlp_compute: Compute the MLP in ceil(tokens / hidden_size) tiles of the sequence, and
            again in backward, so that its working set is one tile's.
        tiled_loss_compute: Compute logits and loss in tiles of the sequence; auto does so
            whenever the sequence is split.
        tiled_loss_bytes: Size of one tile's logits in fp32.
        tiled_loss_engine: What computes the tiles: fused takes the gradients in forward, checkpoint
            recomputes each tile in backward, torch is F.linear_cross_entropy, liger is Liger's
            fused linear cross-entropy; auto is liger with model.type liger, else fused.
        regather: tp_sp and odysseus: gather a block's input again in backward instead of keeping
            the gathered copy (one more all-gather a half-block, 1/N of the activation memory).
        overlap_chunks: tp, tp_sp and odysseus: take a block's tokens in so many chunks, so that the
            collective of one runs beside the matmuls of another.
        ulysses_all_to_all: Who exchanges heads for tokens: this project's packed all-to-all,
            or yunchang's one for each of q, k, v and the output.
        ulysses_head_chunks: ulysses: take a rank's attention in so many chunks of its heads, each
            with its own all-to-all, and keep no q, k, v for backward: they are projected and
            exchanged again. With tiled_mlp_compute the output projection is in the tiles too.
        optimizer: Optimizer.
        parameter_offload: Where ZeRO-3's shards, their gradients and the optimizer live: none is
            the device, cpu is host memory (implies optimizer.offload cpu).
        expandable_segments: CUDA: have PyTorch's allocator use expandable segments, unless
            PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF already says something.
        compile: Run torch.compile on the blocks.
        data: Input text.
        steps: Measured steps.
        warmup_steps: Steps before them, not measured.
        seed: Decides all initial weights that no checkpoint has, whatever the method and the number
            of processes.
        timeout_s: Seconds after which a cell is stopped and becomes a row with status timeout.
        device: Where to compute; auto takes CUDA where there is a GPU.
        dry_run: Count instead of measure: one rank's step without values and without peers, the
            same code, any world_size. The row has mode dry_run, traffic, memory and FLOPs.
        hardware: dry_run: the GPU that it is for, a100-80g, h100-80g, h200-141g, b200-180g or a
            YAML file; without one, what this project's CPU cells do.
        rank: dry_run: which rank; -1 is the one with the most memory.
    """

    method: Literal["tp", "tp_sp", "ulysses", "odysseus"] | str = "odysseus"
    model: ModelOptions = field(default_factory=ModelOptions)
    world_size: int = 1
    sequence_parallel_size: int = 0
    ring_parallel_size: int = 1
    ring_order: Literal["zigzag", "contiguous"] = "zigzag"
    ring_backend: Literal["native", "allgather", "yunchang"] = "native"
    axis_order: Literal[
        "dp-ring-sp", "dp-sp-ring", "ring-dp-sp", "ring-sp-dp", "sp-dp-ring", "sp-ring-dp"
    ] = "dp-ring-sp"
    seq_len: int = 1024
    micro_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    dtype: Literal["fp32", "bf16", "fp64"] = "fp32"
    seq_parallel_communication_data_type: Literal["fp32", "bf16"] = "fp32"
    reduce_bucket_size: int = 0
    zero_prefetch: bool = True
    reshard_after_forward: bool = True
    zero_engine: Literal["fsdp2", "overlap"] = "fsdp2"
    activation_checkpointing: bool = False
    activation_checkpoint_cpu_offload: bool = False
    host_memory_limit_bytes: int = 0
    tiled_mlp_compute: bool = False
    tiled_loss_compute: Literal["auto"] | bool = "auto"
    tiled_loss_bytes: int = 2**30
    tiled_loss_engine: Literal["auto", "fused", "checkpoint", "torch", "liger"] = "auto"
    regather: bool = True
    overlap_chunks: int = 1
    ulysses_all_to_all: Literal["native", "yunchang"] = "native"
    ulysses_head_chunks: int = 1
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    parameter_offload: Literal["none", "cpu"] = "none"
    expandable_segments: bool = True
    compile: bool = False
    data: DataOptions = field(default_factory=DataOptions)
    steps: int = 5
    warmup_steps: int = 2
    seed: int = 0
    timeout_s: int = 1800
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dry_run: bool = False
    hardware: str = ""
    rank: int = -1

    @cached_property
    def architecture(self) -> Architecture:
        """The model's sizes. Raises ValueError when they are impossible."""
        folder = self.model.checkpoint
        base = hf_config.read(folder) if folder else preset(self.model.name_or_path)
        return changed(base, self.model.overrides)

    @property
    def sequence_size(self) -> int:
        """Ranks of the sequence axis, n."""
        return self.sequence_parallel_size or max(1, self.world_size // self.ring_parallel_size)

    @property
    def shards(self) -> int:
        """Ranks that one sample is split over, by ring and sequence axis."""
        return self.ring_parallel_size * self.sequence_size

    @property
    def data_parallel_size(self) -> int:
        """Replicas of the data-parallel axis."""
        return self.world_size // self.shards

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Ranks of each axis by its name in axis_order, slowest first: dp, ring and sp."""
        sizes = {
            "dp": self.data_parallel_size,
            "ring": self.ring_parallel_size,
            "sp": self.sequence_size,
        }
        return {axis: sizes[axis] for axis in self.axis_order.split("-")}

    @property
    def samples_per_step(self) -> int:
        """Samples that all ranks together read in one optimizer step."""
        return self.data_parallel_size * self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all ranks together read in one optimizer step."""
        return self.samples_per_step * self.seq_len

    @property
    def ring_seq_len(self) -> int:
        """Tokens of one sample that the ranks of one sequence axis hold together."""
        return self.seq_len // self.ring_parallel_size

    @property
    def seq_len_unit(self) -> int:
        """What seq_len is a multiple of: two chunks a place in zigzag order, and every rank's shard
        a whole number of half chunks."""
        places = chunks_of(self.ring_order, self.ring_parallel_size) * self.sequence_size
        return places * self.overlap_chunks

    @property
    def local_tokens(self) -> int:
        """Tokens of one micro step in this rank's shard of the sequence."""
        return self.micro_batch_size * self.seq_len // self.shards

    @property
    def recomputes(self) -> bool:
        """Whether blocks keep only their input and run again in backward."""
        return self.activation_checkpointing or self.activation_checkpoint_cpu_offload

    @property
    def tiles_loss(self) -> bool:
        """Whether logits and loss are computed in tiles."""
        return self.shards > 1 if self.tiled_loss_compute == "auto" else self.tiled_loss_compute

    @property
    def loss_engine(self) -> str:
        """The engine of tiled loss that is meant."""
        if self.tiled_loss_engine != "auto":
            return self.tiled_loss_engine
        return "liger" if self.model.type == "liger" else "fused"

    @property
    def optimizer_on_host(self) -> bool:
        """Whether the optimizer's states live in host memory."""
        return "cpu" in (self.optimizer.offload, self.parameter_offload)

    @property
    def offloads(self) -> bool:
        """Whether anything is kept in host memory."""
        return self.activation_checkpoint_cpu_offload or self.optimizer_on_host

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of activations and gathered parameters."""
        return DTYPES[self.dtype]

    @property
    def master_dtype(self) -> torch.dtype:
        """Dtype of parameter shards, their gradients and the optimizer states."""
        return torch.float64 if self.dtype == "fp64" else torch.float32

    @property
    def reduce_dtype(self) -> torch.dtype:
        """Dtype in which gradients travel."""
        if self.dtype == "fp64":
            return torch.float64
        return DTYPES[self.seq_parallel_communication_data_type]

    def check(self) -> None:
        """Raise ValueError, naming the value and what would be valid, unless the sizes fit."""
        for name, least in _LOWEST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.optimizer.learning_rate <= 0:
            raise ValueError(
                f"optimizer.learning_rate is {self.optimizer.learning_rate}; it must be above 0"
            )
        if self.compile and self.model.type == "liger":
            raise ValueError(
                "compile = true is not known to be right with model.type = liger, whose kernels "
                "write over their inputs; valid: model.type = torch, or compile = false"
            )
        if self.compile and self.data.pack:
            raise ValueError(
                "compile = true would compile again for every sample's documents, with data.pack = "
                "true; valid: data.pack = false, or compile = false"
            )
        if self.ulysses_head_chunks > 1 and self.method != "ulysses":
            raise ValueError(
                f"ulysses_head_chunks = {self.ulysses_head_chunks} is for method = ulysses, not "
                f"{self.method}; valid: 1"
            )
        a, ring = self.architecture, self.ring_parallel_size
        heads = a.num_attention_heads, a.num_key_value_heads
        check_axes(self.world_size, ring, self.sequence_size, *heads)
        product = "sequence_parallel_size"
        if ring > 1:
            halves = "2 x " if chunks_of(self.ring_order, ring) > ring else ""
            product = f"{halves}ring_parallel_size x {product}"
        if self.overlap_chunks > 1:
            product += " x overlap_chunks"
        check_multiple(self.seq_len, self.seq_len_unit, product)
        if self.rank >= self.world_size:
            raise ValueError(
                f"rank = {self.rank} is none of world_size = {self.world_size}; "
                f"valid: -1 to {self.world_size - 1}"
            )
        if a.vocab_size < 256 and not self.model.tokenizer:
            raise ValueError(f"model.vocab_size is {a.vocab_size}; byte tokens need at least 256")

    def advice(self) -> list[str]:
        """What runs but could run better, a line each."""
        unit = 256 * self.shards
        if self.seq_len % unit == 0:
            return []
        ring = " x ring_parallel_size" if self.ring_parallel_size > 1 else ""
        return [
            f"seq_len = {self.seq_len} is not a multiple of "
            f"256 x sequence_parallel_size{ring} = {unit}; "
            f"kernels are fastest at {max(1, round(self.seq_len / unit)) * unit}"
        ]
