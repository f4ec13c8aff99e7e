"""The weights that ZeRO-3 shards, and those that it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from bench.simulator.fake_world import META, cpu_kernels, only_rank
from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.parallel import fsdp_internals
from odysseus.parallel.mesh import make_mesh
from odysseus.parallel.sharding import cut_of
from odysseus.training.trainer import Trainer

MODEL = ModelOptions(hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=64)


def left_alone(run: RunConfig) -> set[str]:
    """Names of the block's weights that no rank gathers."""
    with only_rank(0, run.world_size, False):
        trainer = Trainer(run, METHODS[run.method], make_mesh(META, run), cpu_kernels(run))
        block = trainer.model.get_submodule("model.layers.0")
        return {name for name, p in block.named_parameters() if not isinstance(p, DTensor)}


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_of_one_rank_alone_is_not_copied(method: Any) -> None:
    run = RunConfig(model=MODEL, method=method, seq_len=64, world_size=2)
    cut = {name for name in ("self_attn.qkv_proj.weight", "self_attn.o_proj.weight",
                             "mlp.gate_up_proj.weight", "mlp.down_proj.weight")
           if cut_of(name, METHODS[method].split) is not None}  # fmt: skip
    assert left_alone(run) == cut
    assert len(cut) == {"tp": 4, "tp_sp": 4, "odysseus": 2, "ulysses": 0}[method]


@pytest.mark.parametrize(
    "shared",
    [
        {"dtype": "bf16"},  # computed in another dtype than it is kept in
        {"parameter_offload": "cpu"},
        {"sequence_parallel_size": 2},  # two replicas
        {"sequence_parallel_size": 2, "ring_parallel_size": 2},
    ],
)
def test_any_other_is_sharded(shared: dict[str, Any]) -> None:
    alone = RunConfig(model=MODEL, method="tp", seq_len=64, world_size=4)
    assert left_alone(alone)
    assert not left_alone(replace(alone, **shared))


@pytest.mark.parametrize(("method", "gathers"), [("tp", 1), ("tp_sp", 1), ("ulysses", 0)])
def test_norms_alone_are_gathered_once_for_all_blocks(method: Any, gathers: int) -> None:
    """Norms belong to their block's unit where the block has other weights that the method does not
    cut."""
    model = replace(MODEL, num_hidden_layers=3)
    run = RunConfig(model=model, method=method, seq_len=64, world_size=2)
    with only_rank(0, run.world_size, False):
        trainer = Trainer(run, METHODS[run.method], make_mesh(META, run), cpu_kernels(run))
        assert isinstance(trainer.model, FSDPModule)
        groups = fsdp_internals.parameter_groups(trainer.model)
        sizes = [len(fsdp_internals.sharded_parameters(group)) for group in groups]
        assert sizes == [2 * 3] * gathers
