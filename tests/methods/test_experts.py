"""Models with experts, spread in every way: gradients, bytes, dry runs, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from bench.config import checks
from bench.theory import traffic as theory_traffic
from bench.theory.experts import Load
from methods.peers import as_method
from odysseus.config import pairs
from odysseus.config.architecture import Architecture
from odysseus.config.run import OptimizerOptions, RunConfig
from odysseus.model import experts
from odysseus.parallel.expert_parallel import Exchange
from tests.support import dry_run, toggles
from tests.support.crossed import (
    MESHES,
    SHARED,
    Options,
    check_bytes,
    check_dry_runs,
    check_parity,
    crossed,
    on_mesh_in_dtypes,
)
from tests.support.marks import slow
from tests.support.paths import ROOT
from tests.support.ranks import run_ranks
from tests.support.runs import MODEL, RUN
from tests.support.toggles import LOSS_TILES
from tests.support.traffic import measured_columns

EXPERTS = replace(MODEL, intermediate_size=16, num_experts=4, num_experts_per_tok=2)
LOSSES = {"router_aux_loss_coef": 0.1, "router_z_loss_coef": 0.01}
MODELS = {
    "softmax": EXPERTS,
    "losses": replace(EXPERTS, **LOSSES),
    "shared": replace(
        EXPERTS,
        num_experts=8,
        num_experts_per_tok=3,
        scoring_func="sigmoid",
        norm_topk_prob=False,
        shared_expert_intermediate_size=24,
        num_key_value_heads=1,
        **LOSSES,
    ),
    "qwen": replace(EXPERTS, use_qk_norm=True, num_key_value_heads=2, tie_word_embeddings=True),
}
METHODS = pairs.spread_pairs(experts=True)
EXAMPLE = ROOT / "tests" / "support" / "example_mlp.py"
OPTIONS: Options = {
    "method": {name: {"method": name} for name in METHODS},
    **SHARED,
    "model": {name: {"model": model} for name, model in MODELS.items()},
    "tiles": {"off": {}, "on": {"tiled_mlp_compute": True, **LOSS_TILES}},
    "micro steps": {"one": {}, "two": {"gradient_accumulation_steps": 2}},
    "host": {
        "nothing": {},
        "optimizer": {"optimizer": OptimizerOptions(offload="cpu")},
        "masters": {"optimizer": OptimizerOptions(offload="masters")},
        "parameters": {"parameter_offload": "cpu"},
    },
    "experts": {
        "of the sequence axis": {},
        "of 2 ranks": {"expert_parallel_size": 2},
        "of 4 ranks": {"expert_parallel_size": 4},
    },
}


def allowed(row: Mapping[str, str]) -> bool:
    """Whether a run may have these values."""
    method, mesh, of_experts = (row.get(name, "") for name in ("method", "mesh", "experts"))
    tsp_ring = method.startswith("tsp") and "ring" in mesh
    tied_and_cut = row.get("model") == "qwen" and row.get("vocabulary") == "cut"
    no_experts = "expert" not in method and of_experts.startswith("of ") and "ranks" in of_experts
    too_few = mesh == "2" and "4" in of_experts
    return not (tsp_ring or tied_and_cut or (method and no_experts) or too_few)


@cache
def every_run() -> list[RunConfig]:
    return crossed(OPTIONS, allowed)


EVERY = [mesh if mesh == "2" else slow(mesh) for mesh in MESHES]


@pytest.mark.parametrize("mesh", EVERY)
def test_parity(mesh: str) -> None:
    check_parity(every_run(), mesh)


def test_on_a_second_axis_in_a_ring_of_whole_tokens_and_with_chunks_of_heads() -> None:
    """Experts cut over a tensor axis, `local` attention beside experts of other ranks, and
    attention that exchanges some heads at a time."""
    tensor = replace(RUN, method="ulysses", world_size=4, tensor_parallel_size=2)
    local = replace(RUN, method="local+expert", world_size=2, ring_parallel_size=2)
    chunks = replace(RUN, method="ulysses", world_size=2, ulysses_head_chunks=2)
    for run in (tensor, replace(local, expert_parallel_size=2), chunks):
        for model in (MODELS["losses"], MODELS["shared"]):
            checks.check(replace(run, model=model))
            toggles.check_all([replace(run, model=model)])


@pytest.mark.parametrize("mesh", EVERY)
def test_bytes_equal_theory(mesh: str) -> None:
    check_bytes([run for run in every_run() if run.parts.mlp != "expert"], mesh)


@pytest.mark.parametrize("mesh", EVERY)
def test_bytes_follow_the_load(mesh: str) -> None:
    runs = on_mesh_in_dtypes([run for run in every_run() if run.parts.mlp == "expert"], mesh)
    uneven = 0
    for rank, measured in enumerate(run_ranks(columns_and_loads, runs[0].world_size, runs)):
        for run, (columns, load) in zip(runs, measured, strict=True):
            uneven += load.sent_rows != load.returned_rows
            assert columns == theory_traffic.step_traffic(run, rank, load).columns, (rank, run)
    assert uneven


def columns_and_loads(runs: list[RunConfig]) -> list[tuple[dict[str, int], Load]]:
    """Measure the traffic of a step of each run, and what this rank exchanges for experts."""
    make, found = Exchange.of, []
    for run in runs:
        seen: list[Exchange] = []

        def noted(*given: Any, seen: list[Exchange] = seen) -> Exchange:
            seen.append(make(*given))
            return seen[-1]

        with mock.patch.object(Exchange, "of", noted):
            (columns,) = measured_columns([run])
        there = sum(sum(x.sent) - x.sent[x.axis.rank] for x in seen)
        back = sum(sum(x.received) - x.received[x.axis.rank] for x in seen)
        # Every forward, and what repeats it, sends the same.
        forwards = 1 + (run.recomputes or run.tiled_mlp_compute)
        times = run.architecture.num_hidden_layers * run.gradient_accumulation_steps * forwards
        found.append((columns, Load(Fraction(there, times), Fraction(back, times))))
    return found


choose = experts.choose


def balanced(logits_TE: Tensor, a: Architecture) -> tuple[Tensor, Tensor]:
    """Replace the chosen experts by others in turn, so that all get equally many rows."""
    weights_TK, _ = choose(logits_TE, a)
    chosen = torch.arange(weights_TK.numel(), device=logits_TE.device) % a.num_experts
    return weights_TK, chosen.view_as(weights_TK)


def measured_with_balanced_load(runs: list[RunConfig]) -> list[dict[str, Any]]:
    with mock.patch.object(experts, "choose", balanced):
        return dry_run.measured(runs)


DRY_RUNS = [("2", 8), *(slow(mesh, 1) for mesh in MESHES)]


@pytest.mark.parametrize(("mesh", "step"), DRY_RUNS)
def test_a_dry_run_counts_the_same(mesh: str, step: int) -> None:
    check_dry_runs([run for run in every_run() if run.parts.mlp != "expert"], mesh, step)


@pytest.mark.parametrize(("mesh", "step"), DRY_RUNS)
def test_a_dry_run_has_a_balanced_load(mesh: str, step: int) -> None:
    runs = [run for run in every_run() if run.parts.mlp == "expert"]
    with mock.patch.object(experts, "choose", balanced):
        check_dry_runs(runs, mesh, step, measured_with_balanced_load)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "tsp"}, "model.num_experts = 4 is not for method = tsp"),
        (
            {"mlp": "expert", "expert_parallel_size": 3},
            "expert_parallel_size = 3 does not divide wo",
        ),
        ({"expert_parallel_size": 2}, "expert_parallel_size = 2 is for mlp = expert, not for meth"),
        ({"overlap_chunks": 2}, "overlap_chunks = 2 does not support model.num_experts = 4"),
        ({"compile": True}, "compile = true does not support model.num_experts = 4"),
        ({"mlp": "expert", "model": MODEL}, "shares out experts, and tiny has none"),
        (
            {"mlp": "expert", "model": replace(EXPERTS, num_experts=6)},
            "expert_parallel_size = 4 does not divide model.num_experts = 6; valid: 1, 2",
        ),
        (
            {"method": "tp", "model": replace(EXPERTS, shared_expert_intermediate_size=6)},
            "model.shared_expert_intermediate_size = 6 does not divide by sequence_parallel_size",
        ),
        ({"model": replace(EXPERTS, num_experts_per_tok=5)}, "model.num_experts_per_tok is 5; val"),
        ({"model": replace(MODEL, num_experts_per_tok=2)}, "num_experts_per_tok is 2 without exp"),
        ({"model": replace(MODEL, router_aux_loss_coef=0.1)}, "router_aux_loss_coef is 0.1 witho"),
        ({"model": replace(MODEL, scoring_func="sigmoid")}, "scoring_func is sigmoid without expe"),
        ({"model": replace(EXPERTS, num_experts=-1)}, "num_experts is -1; it must be at least 0"),
        ({"method": str(EXAMPLE)}, "does not say experts=True; valid: a METHOD that does"),
        ({"model": replace(EXPERTS, mlp_bias=True)}, "model.mlp_bias = true is not for experts"),
    ],
)
def test_what_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        checks.check(replace(RUN, **{"model": EXPERTS, "world_size": 4, **options}))
    assert "\n" not in str(refused.value)


def test_peers_have_no_experts() -> None:
    run = as_method.with_peer_defaults(replace(RUN, method="peer:megatron_tp", model=EXPERTS))
    with pytest.raises(ValueError, match=r"model.num_experts = 4 is not for peer megatron_tp"):
        checks.check(replace(run, world_size=2, micro_batch_size=1, dtype="fp32"))
