"""The groups that make up a run's configuration, each a frozen dataclass of flat options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from odysseus.config.option_group import OptionGroup, bounded

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp64": "float64"}
"""Names of dtypes in options, and torch's names for them."""
_BYTES = {"fp32": 4, "bf16": 2, "fp64": 8}


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype with an option's name."""
    import torch  # not at the top: --help and refused options must not wait seconds for torch

    return getattr(torch, DTYPES[name])


@dataclass(frozen=True, kw_only=True)
class Batch(OptionGroup):
    """Batch: tokens and samples of one optimizer step.

    Args:
        seq_len: Tokens of one whole sample, before it is split over ranks.
        micro_batch_size: Samples per data-parallel replica and micro step.
        gradient_accumulation_steps: Micro steps per optimizer step.
    """

    seq_len: int = bounded(1, 2**40, default=1024)
    micro_batch_size: int = bounded(1, default=1)
    gradient_accumulation_steps: int = bounded(1, default=1)


@dataclass(frozen=True, kw_only=True)
class Precision(OptionGroup):
    """Precision: dtypes of computation and of gradient reduction.

    Args:
        dtype: Compute dtype of the parameters. With bf16 the parameter shards and the optimizer
            states stay in fp32 (the shards only without optimizer.offload masters).
        seq_parallel_communication_data_type: Dtype in which gradients are reduced between ranks
            (with dtype fp64 they are reduced in fp64).
    """

    dtype: Literal["fp32", "bf16", "fp64"] = "fp32"
    seq_parallel_communication_data_type: Literal["fp32", "bf16"] = "fp32"

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of activations and gathered parameters."""
        return torch_dtype(self.dtype)

    @property
    def compute_bytes(self) -> int:
        """Bytes of an element of the compute dtype, known without torch."""
        return _BYTES[self.dtype]

    @property
    def reduce_bytes(self) -> int:
        """Bytes of an element in which gradients are reduced, known without torch."""
        return _BYTES[self._reduced]

    @property
    def master_dtype(self) -> torch.dtype:
        """Dtype of the master weights, their gradients and the optimizer states."""
        return torch_dtype("fp64" if self.dtype == "fp64" else "fp32")

    @property
    def reduce_dtype(self) -> torch.dtype:
        """Dtype in which gradients are reduced."""
        return torch_dtype(self._reduced)

    @property
    def _reduced(self) -> str:
        return "fp64" if self.dtype == "fp64" else self.seq_parallel_communication_data_type


@dataclass(frozen=True, kw_only=True)
class Zero(OptionGroup):
    """ZeRO-3: sharding of parameters, gradients and optimizer states.

    Args:
        reduce_bucket_size: Elements of the largest gradient reduction; 0 reduces a whole ZeRO unit
            (a block, the embedding or the head) at once. Smaller buckets bound the memory that
            reducing in another dtype takes.
        zero_prefetch: Gather the next ZeRO unit's weights while the current unit computes (on a
            GPU). Without it weights are gathered when they are needed, and one gathered unit fewer
            is in memory.
        reshard_after_forward: Free a block's gathered weights after its forward and gather them
            again in backward. false keeps the gathered weights of all blocks until backward.
        zero_engine: Implementation of ZeRO-3's gathers and reductions. fsdp2 overlaps both with
            computation on a GPU, and waits for each on a CPU; overlap hides them on a CPU too.
        parameter_offload: Device of the parameter shards, their gradients and the optimizer. none
            is the device that computes; cpu is host memory (implies optimizer.offload cpu).
    """

    reduce_bucket_size: int = bounded(0, 2**40, default=0)
    zero_prefetch: bool = True
    reshard_after_forward: bool = True
    zero_engine: Literal["fsdp2", "overlap"] = "fsdp2"
    parameter_offload: Literal["none", "cpu"] = "none"


@dataclass(frozen=True, kw_only=True)
class MemorySavings(OptionGroup):
    """Memory savings: recomputation, offloading and tiling of activations.

    Args:
        activation_checkpointing: Keep only each block's input and recompute the block in backward.
        activation_checkpoint_cpu_offload: Keep these block inputs in host memory (implies
            activation_checkpointing).
        host_memory_limit_bytes: Host memory per node that offloading may take; 0 is 90% of the
            machine's. A cell that needs more becomes a row with status oom_cpu.
        tiled_mlp_compute: Compute the MLP in ceil(tokens / hidden_size) tiles of the sequence, and
            again in backward, so that one tile's intermediate activations are in memory at a time.
        tiled_loss_compute: Compute logits and loss in tiles of the sequence; auto does so if the
            sequence is split over ranks.
        tiled_loss_bytes: Bytes of one tile's logits in fp32.
        tiled_loss_engine: Implementation of the tiled loss. fused computes the gradients in
            forward; checkpoint recomputes each tile in backward; torch is F.linear_cross_entropy;
            liger is Liger's fused linear cross-entropy; auto is liger with model.type liger, else
            fused.
        regather: tp_sp, odysseus and a tensor axis: gather a block's input again in backward
            instead of keeping the gathered copy. It costs one more all-gather per half block, and
            keeps 1/N of that activation memory.
        ulysses_head_chunks: ulysses: number of chunks that a rank's attention heads are computed
            in, each with its own all-to-all. q, k and v are not kept for backward but projected and
            exchanged again. With tiled_mlp_compute the output projection is tiled too.
    """

    activation_checkpointing: bool = False
    activation_checkpoint_cpu_offload: bool = False
    host_memory_limit_bytes: int = bounded(0, 2**60, default=0)
    tiled_mlp_compute: bool = False
    tiled_loss_compute: Literal["auto"] | bool = "auto"
    tiled_loss_bytes: int = bounded(1, 2**60, default=2**30)
    tiled_loss_engine: Literal["auto", "fused", "checkpoint", "torch", "liger"] = "auto"
    regather: bool = True
    ulysses_head_chunks: int = bounded(1, default=1)

    @property
    def recomputes(self) -> bool:
        """Whether blocks keep only their input and run again in backward."""
        return self.activation_checkpointing or self.activation_checkpoint_cpu_offload


@dataclass(frozen=True, kw_only=True)
class Execution(OptionGroup):
    """Execution: device, number of steps, seed, time limit and log.

    Args:
        device: Device that computes; auto takes CUDA where there is a GPU.
        compile: Run torch.compile on the blocks.
        expandable_segments: CUDA: let PyTorch's allocator use expandable segments, unless
            PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF is set.
        numa_binding: CUDA: node keeps each rank on the CPUs of the NUMA node of its GPU, like
            torchrun's option of that name; none leaves that to the system or the launcher.
        steps: Measured steps of each round.
        warmup_steps: Steps before the measured ones of each round.
        rounds: Times that a cell is started and measured. A sweep measures the cells that differ
            only in their method in turn, round by round, so that a change of the machine's speed
            is no difference of methods.
        seed: Seed of all initial weights that no checkpoint has. The weights do not depend on the
            method or the number of processes.
        timeout_s: Seconds after which a cell is stopped and becomes a row with status timeout.
        log: Where the loss, time and tokens/s of every step go besides: TensorBoard or Weights &
            Biases, whose package must be installed.
        log_dir: Folder of the log; each round of a cell has a subfolder.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    expandable_segments: bool = True
    numa_binding: Literal["node", "none"] = "node"
    steps: int = bounded(1, 10**9, default=5)
    warmup_steps: int = bounded(0, 10**9, default=2)
    rounds: int = bounded(1, 10**6, default=1)
    seed: int = bounded(0, 2**63 - 1, default=0)
    timeout_s: int = bounded(1, 10**8, default=1800)
    log: Literal["none", "tensorboard", "wandb"] = "none"
    log_dir: str = "results/log"


@dataclass(frozen=True, kw_only=True)
class DryRun(OptionGroup):
    """Dry run: one rank's step counted and predicted, without a GPU or other ranks.

    Args:
        dry_run: Count instead of measuring: run one rank's step, with the same code, on fake
            tensors and a fake process group of any world_size. The row has mode dry_run, traffic,
            memory and FLOPs.
        hardware: dry_run: node to predict for, a profile that `python -m bench hardware` lists, or
            a YAML file. --hardware.FIELD VALUE overrides one of its fields, for example
            --hardware.network_bytes_per_s 12.5e9. Without a profile, the dry run counts what a cell
            on this machine's CPU does.
        rank: dry_run: rank to count; -1 is the rank with the most memory.
        router_load: dry_run of a model with experts: tokens that each expert gets, the same in
            every block. balanced is equally many; with zipf, expert k gets tokens in proportion to
            1/k; a file has each expert's share or number of tokens. It matters for mlp expert,
            where ranks compute what their experts get.
    """

    dry_run: bool = False
    hardware: str = ""
    rank: int = bounded(-1, default=-1)
    router_load: Literal["balanced", "zipf"] | str = "balanced"
