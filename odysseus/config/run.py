"""Configuration of a run: its options, their defaults, and which values are valid together.

The command line and YAML files are generated from these fields, their types and docstrings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from odysseus.config import hf_config, pairs, router_load
from odysseus.config.architecture import Architecture, preset, with_overrides
from odysseus.config.groups import (
    Batch,
    DryRun,
    Execution,
    MemorySavings,
    Precision,
    Zero,
)
from odysseus.config.nested import DataOptions, ModelOptions, OptimizerOptions
from odysseus.config.parallelism import Parallelism
from odysseus.config.sizes import (
    check_multiple,
    check_sequence,
    chunks_of,
    divides,
    divisors,
    shares,
)
from odysseus.config.vocabulary import VocabularyCut

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class RunConfig(Parallelism, Batch, Precision, Zero, MemorySavings, Execution, DryRun):
    """Cell of the benchmark: method, model, optimizer and data.

    Args:
        method: Method that spreads a block over the ranks of the sequence axis. run, sweep, verify
            and plan also take FILE.py, a Python file with a METHOD. plan also takes several,
            separated by commas, all, or pairs. run and sweep also take peer:NAME, another
            implementation; docs/performance.md lists the names. ATTENTION+MLP is a pair of parts,
            for example ulysses+tp_sp.
        attention: Attention of the method; own leaves it as it is. local is for ranks that have all
            tokens of their sample, or of their part of a ring. tsp passes weights, keys and values
            from rank to rank.
        mlp: MLP of the method; own leaves it as it is. zero computes on the shard, with whole
            weights that ZeRO-3 shards. tsp passes weights from rank to rank. expert is for models
            with experts: it shares them out over ranks, to which tokens travel.
        model: Model and its kernels.
        optimizer: Optimizer.
        data: Training text.
    """

    method: Literal["tp", "tp_sp", "ulysses", "odysseus", "tsp"] | str = "odysseus"
    attention: Literal["own", "tp", "tp_sp", "ulysses", "local", "tsp"] = "own"
    mlp: Literal["own", "tp", "tp_sp", "zero", "tsp", "expert"] = "own"
    model: ModelOptions = field(default_factory=ModelOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    data: DataOptions = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        """Write a method's other attention and MLP as the name of their pair.

        Raises:
            ValueError: the method has no parts that can be replaced.
        """
        method = pairs.with_parts(self.method, self.attention, self.mlp)
        for name, value in (("method", method), ("attention", pairs.OWN), ("mlp", pairs.OWN)):
            object.__setattr__(self, name, value)

    @property
    def parts(self) -> pairs.Parts:
        """The names of the method's attention and MLP; empty for a peer or a file."""
        return pairs.parts_of(self.method)

    @cached_property
    def architecture(self) -> Architecture:
        """Architecture of the model. Raises ValueError if its sizes do not fit together."""
        return with_overrides(self.named_architecture, self.model.overrides)

    @cached_property
    def named_architecture(self) -> Architecture:
        """Architecture of the preset or checkpoint, before any size is overridden."""
        folder = self.model.checkpoint
        return hf_config.read(folder) if folder else preset(self.model.name_or_path)

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
        """Tokens of one sample that the ranks of one rank of the ring axis hold together."""
        return self.seq_len // self.ring_parallel_size

    @property
    def local_tokens(self) -> int:
        """Tokens of one micro step in this rank's shard of the sequence."""
        return self.micro_batch_size * self.seq_len // self.shards

    @property
    def tiles_loss(self) -> bool:
        """Whether logits and loss are computed in tiles."""
        return self.shards > 1 if self.tiled_loss_compute == "auto" else self.tiled_loss_compute

    @property
    def loss_engine(self) -> str:
        """Engine of the tiled loss, with auto resolved."""
        if self.tiled_loss_engine != "auto":
            return self.tiled_loss_engine
        return "liger" if self.model.type == "liger" else "fused"

    @property
    def optimizer_on_host(self) -> bool:
        """Whether the optimizer's states are in host memory."""
        return self.optimizer_offload != "none"

    @property
    def optimizer_offload(self) -> str:
        """The optimizer's part in host memory: ``none``, ``cpu`` or ``masters``."""
        return "cpu" if self.parameter_offload == "cpu" else self.optimizer.offload

    @property
    def masters_on_host(self) -> bool:
        """Whether the master weights are in host memory alone."""
        return self.optimizer_offload == "masters"

    @property
    def shard_dtype(self) -> torch.dtype:
        """Dtype of the parameter shards on the device."""
        return self.compute_dtype if self.masters_on_host else self.master_dtype

    @property
    def offloads(self) -> bool:
        """Whether anything is kept in host memory."""
        return self.activation_checkpoint_cpu_offload or self.optimizer_on_host

    @property
    def expert_ranks(self) -> int:
        """Ranks that share out the experts; 1 unless the method's MLP does."""
        if self.parts.mlp != "expert":
            return 1
        return self.expert_parallel_size or self.sequence_size

    @cached_property
    def router_shares(self) -> router_load.Shares:
        """Each expert's share of the rows in a dry run. Raises ValueError: see router_load.py."""
        a = self.architecture
        return router_load.shares(self.router_load, a.num_experts, a.num_experts_per_tok)

    @property
    def has_unequal_experts(self) -> bool:
        """Whether ranks share out experts that get different numbers of tokens in a dry run."""
        return self.expert_ranks > 1 and self.router_load != router_load.BALANCED

    @property
    def heads_divide(self) -> bool:
        """Whether all ranks of a sequence axis have as many heads."""
        return divides(*self.shared_heads, self.sequence_size)

    @property
    def head_shares(self) -> list[tuple[range, range]]:
        """The query heads of each rank of a sequence axis, and the kv heads that they need."""
        return shares(*self.shared_heads, self.sequence_size)

    @property
    def shared_heads(self) -> tuple[int, int]:
        """The query and kv heads that a sequence axis shares out: those of a rank of the tensor
        axis, which has at least one kv head."""
        a, tensor = self.architecture, self.tensor_parallel_size
        return a.num_attention_heads // tensor, max(1, a.num_key_value_heads // tensor)

    @property
    def ring_axis(self) -> str:
        """Name of the axis that keys and values go around: with `tsp` attention the sequence's."""
        return "sp" if self.parts.attention == "tsp" else super().ring_axis

    @cached_property
    def vocabulary_cuts(self) -> tuple[str, ...]:
        """The parts that are cut by vocabulary, of ``embedding`` and ``head``."""
        return self._vocabulary_cut.parts_cut

    @property
    def _vocabulary_cut(self) -> VocabularyCut:
        """The cut of the vocabulary, with all that decides it."""
        return VocabularyCut(
            asked=self.vocab_parallel,
            architecture=self.architecture,
            ranks=self.cutting_ranks,
            axis={"sp": "sequence", "tp": "tensor"}[self.cutting_axis] + "_parallel_size",
            world=self.world_size,
            tokens=self.local_tokens * self.cutting_ranks,
            replicated=self.parts == ("tp", "tp"),
            engine=self.loss_engine if self.tiles_loss else "",
            width=self.compute_bytes,
            reduced=self.reduce_bytes,
        )

    @property
    def vocabulary_text(self) -> str:
        """The value of ``vocab_parallel`` that cuts these parts, with auto resolved."""
        return {0: "false", 2: "true"}.get(len(cuts := self.vocabulary_cuts), "".join(cuts))

    def check(self) -> None:
        """Raise ValueError, naming the value and what is valid, unless the options fit together.

        Each group first checks its own options; the other checks concern several groups.
        """
        super().check()
        self.optimizer.check()
        self._check_combinations()
        self._check_sizes()

    def _check_combinations(self) -> None:
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
        self._check_experts()
        if self.ulysses_head_chunks > 1 and self.method != "ulysses":
            raise ValueError(
                f"ulysses_head_chunks = {self.ulysses_head_chunks} is for method = ulysses, not "
                f"{self.method}; valid: 1"
            )
        if self.tensor_parallel_size > 1 and self.method != "ulysses":
            raise ValueError(
                f"tensor_parallel_size = {self.tensor_parallel_size} cuts method = ulysses over a "
                f"second axis, not {self.method}; valid: method = ulysses, or "
                "tensor_parallel_size = 1"
            )

    def _check_experts(self) -> None:
        """Raise ValueError unless the options fit a model with experts, or one without."""
        if self.expert_parallel_size and self.parts.mlp != "expert":
            raise ValueError(
                f"expert_parallel_size = {self.expert_parallel_size} is for mlp = expert, not for "
                f"method = {self.method}; valid: 0"
            )
        a = self.architecture
        if not a.num_experts:
            if self.router_load != router_load.BALANCED:
                raise ValueError(
                    f"router_load = {self.router_load} is for models with experts, and "
                    f"{self.model.name_or_path} has none; valid: balanced"
                )
            return
        _ = self.router_shares  # raises ValueError
        for name, value, plain in (
            ("overlap_chunks", self.overlap_chunks, 1),
            ("compile", self.compile, False),
            ("model.implementation", self.model.implementation, "native"),
        ):
            if value != plain:
                valid = str(plain).lower()
                raise ValueError(
                    f"{name} = {str(value).lower()} does not support model.num_experts = "
                    f"{a.num_experts}; valid: {name} = {valid}"
                )

    def _check_sizes(self) -> None:
        a, ring, tensor = self.architecture, self.ring_parallel_size, self.tensor_parallel_size
        if not divides(a.num_attention_heads, a.num_key_value_heads, tensor):
            valid = [
                t
                for t in divisors(self.world_size // ring)
                if divides(a.num_attention_heads, a.num_key_value_heads, t)
            ]
            raise ValueError(
                f"tensor_parallel_size = {tensor} does not fit model.num_attention_heads = "
                f"{a.num_attention_heads} with model.num_key_value_heads = "
                f"{a.num_key_value_heads}; valid: {valid}"
            )
        uneven = self.parts.attention == "ulysses" and self.ulysses_all_to_all == "native"
        uneven = uneven and self.ulysses_head_chunks == tensor == 1
        others = {"ring_parallel_size": ring, "tensor_parallel_size": tensor}
        check_sequence(self.world_size, others, self.sequence_size, *self.shared_heads, uneven)
        check_multiple(self.seq_len, self.seq_len_unit, self._unit_text)
        self._vocabulary_cut.check()
        if self.rank >= self.world_size:
            raise ValueError(
                f"rank = {self.rank} is not a rank of world_size = {self.world_size}; "
                f"valid: -1 to {self.world_size - 1}"
            )
        if a.sliding_window is not None and a.sliding_window < self.seq_len:
            raise ValueError(
                f"seq_len = {self.seq_len} is longer than model.sliding_window = "
                f"{a.sliding_window}, and windows are not measured yet; valid: up to "
                f"{a.sliding_window}, or odysseus.hf in a loop of your own"
            )
        if a.vocab_size < 256 and not self.model.tokenizer:
            raise ValueError(f"model.vocab_size is {a.vocab_size}; byte tokens need at least 256")

    @property
    def _unit_text(self) -> str:
        """The factors of `seq_len_unit`, those that are 1 left out."""
        ring, _ = self.token_axes
        names = ("ring_parallel_size", "sequence_parallel_size", "tensor_parallel_size")
        factors = ["2"] * (chunks_of(self.ring_order, ring) > ring)
        factors += [n for n in names if n == "sequence_parallel_size" or getattr(self, n) > 1]
        return " x ".join([*factors, *["overlap_chunks"] * (self.overlap_chunks > 1)])
