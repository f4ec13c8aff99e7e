"""Everything a run can be told, its defaults, and what is valid.

The command line and YAML files are generated from these fields, their types and docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from odysseus.architecture import Architecture, resolve
from odysseus.option_groups import DataOptions, ModelOptions, OptimizerOptions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One cell of the benchmark: a method, a model, a sequence length and a number of processes.

    Args:
        method: How a block is spread over the ranks of the sequence axis.
        model: Which model.
        world_size: Processes; one GPU each where there are GPUs.
        sequence_parallel_size: Ranks of the method's own axis; 0 takes all of world_size.
            The rest, world_size / sequence_parallel_size, are data-parallel replicas.
        seq_len: Tokens of one whole sample.
        micro_batch_size: Samples a data-parallel replica takes per micro step.
        gradient_accumulation_steps: Micro steps per optimizer step.
        dtype: Compute dtype of the parameters. With bf16 the optimizer keeps fp32 shards.
        seq_parallel_communication_data_type: Dtype in which gradients are reduced between
            ranks (fp64 runs reduce in fp64).
        reduce_bucket_size: Elements of the largest gradient reduction; 0 reduces a whole ZeRO unit
            (a block, the embedding, the head) at once. Bounds the memory that reducing in
            another dtype takes.
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
        ulysses_all_to_all: Who exchanges heads for tokens: this project's packed all-to-all,
            or yunchang's one for each of q, k, v and the output.
        optimizer: Optimizer.
        parameter_offload: Where ZeRO-3's shards, their gradients and the optimizer live: none is
            the device, cpu is host memory (implies optimizer.offload cpu).
        expandable_segments: CUDA: have PyTorch's allocator use expandable segments, unless
            PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF already says something.
        compile: Run torch.compile on the blocks.
        data: Input text.
        steps: Measured steps.
        warmup_steps: Steps before them, not measured.
        seed: Decides all initial weights, whatever the method and the number of processes.
        timeout_s: Seconds after which a cell is stopped and becomes a row with status timeout.
        device: Where to compute; auto takes CUDA where there is a GPU.
    """

    method: Literal["tp", "tp_sp", "ulysses", "odysseus"] = "odysseus"
    model: ModelOptions = field(default_factory=ModelOptions)
    world_size: int = 1
    sequence_parallel_size: int = 0
    seq_len: int = 1024
    micro_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    dtype: Literal["fp32", "bf16", "fp64"] = "fp32"
    seq_parallel_communication_data_type: Literal["fp32", "bf16"] = "fp32"
    reduce_bucket_size: int = 0
    activation_checkpointing: bool = False
    activation_checkpoint_cpu_offload: bool = False
    host_memory_limit_bytes: int = 0
    tiled_mlp_compute: bool = False
    tiled_loss_compute: Literal["auto"] | bool = "auto"
    tiled_loss_bytes: int = 2**30
    tiled_loss_engine: Literal["auto", "fused", "checkpoint", "torch", "liger"] = "auto"
    regather: bool = True
    ulysses_all_to_all: Literal["native", "yunchang"] = "native"
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

    @cached_property
    def architecture(self) -> Architecture:
        """The model's sizes. Raises ValueError when they are impossible."""
        return resolve(self.model.name_or_path, self.model.overrides)

    @property
    def sequence_size(self) -> int:
        """Ranks of the sequence axis, n."""
        return self.sequence_parallel_size or self.world_size

    @property
    def data_parallel_size(self) -> int:
        """Replicas of the data-parallel axis."""
        return self.world_size // self.sequence_size

    @property
    def samples_per_step(self) -> int:
        """Samples that all ranks together read in one optimizer step."""
        return self.data_parallel_size * self.micro_batch_size * self.gradient_accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all ranks together read in one optimizer step."""
        return self.samples_per_step * self.seq_len

    @property
    def local_tokens(self) -> int:
        """Tokens of one micro step in this rank's shard of the sequence."""
        return self.micro_batch_size * self.seq_len // self.sequence_size

    @property
    def recomputes(self) -> bool:
        """Whether blocks keep only their input and run again in backward."""
        return self.activation_checkpointing or self.activation_checkpoint_cpu_offload

    @property
    def tiles_loss(self) -> bool:
        """Whether logits and loss are computed in tiles."""
        return (
            self.sequence_size > 1 if self.tiled_loss_compute == "auto" else self.tiled_loss_compute
        )

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
        lowest = {"world_size": 1, "sequence_parallel_size": 0, "seq_len": 1, "steps": 1}
        lowest |= {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "warmup_steps": 0}
        lowest |= {"seed": 0, "timeout_s": 1, "reduce_bucket_size": 0}
        lowest |= {"host_memory_limit_bytes": 0, "tiled_loss_bytes": 1}
        for name, least in lowest.items():
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
        model, n = self.architecture, self.sequence_size
        heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
        fitting = [s for s in divisors(heads) if kv_heads % s == 0 or s % kv_heads == 0]
        valid = [s for s in fitting if self.world_size % s == 0]
        if self.world_size % n:
            raise ValueError(
                f"sequence_parallel_size = {n} does not divide world_size = {self.world_size}; "
                f"valid: {valid}"
            )
        if n > heads:
            raise ValueError(
                f"sequence_parallel_size = {n} is more than model.num_attention_heads = {heads}; "
                f"valid: {valid}"
            )
        if n not in valid:
            raise ValueError(
                f"sequence_parallel_size = {n} does not fit model.num_attention_heads = {heads} "
                f"with model.num_key_value_heads = {kv_heads}; valid: {valid}"
            )
        if self.seq_len % n:
            raise ValueError(
                f"seq_len = {self.seq_len} does not divide by sequence_parallel_size = {n}; "
                f"nearest valid: {nearest_multiples(self.seq_len, n)}"
            )
        if model.vocab_size < 256:
            raise ValueError(
                f"model.vocab_size is {model.vocab_size}; byte tokens need at least 256"
            )

    def advice(self) -> list[str]:
        """What runs but could run better, a line each."""
        unit = 256 * self.sequence_size
        if self.seq_len % unit == 0:
            return []
        return [
            f"seq_len = {self.seq_len} is not a multiple of 256 x sequence_parallel_size = {unit}; "
            f"kernels are fastest at {max(1, round(self.seq_len / unit)) * unit}"
        ]


def divisors(number: int) -> list[int]:
    """The divisors of a positive number, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def nearest_multiples(number: int, of: int) -> str:
    """The positive multiples on either side of a number that is none, as in "8 or 12"."""
    below = number // of * of
    return f"{below} or {below + of}" if below else f"{of}"
