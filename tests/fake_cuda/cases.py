"""Cases of the fake GPU: every method, ranks, ring and toggle, and what happens in one."""

from __future__ import annotations

import traceback
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.meters.step import memory_of_step
from bench.scripted.gpu import CUDA
from bench.simulator import dry_run
from methods import method_of
from odysseus.config.pairs import NAMED
from odysseus.config.run import DataOptions, RunConfig
from odysseus.io.text import Samples
from odysseus.parallel import chunked_block
from odysseus.parallel.mesh import make_mesh
from odysseus.training import trainer as training
from tests.fake_cuda.faults import FAULTS
from tests.fake_cuda.programs import order
from tests.fake_cuda.races import UseRecorder, races
from tests.fake_cuda.syncs import HostSyncs
from tests.fake_cuda.world import only_gpu
from tests.support.runs import RUN
from tests.support.toggles import ALL_ON, TOGGLES

BASE = replace(RUN, dtype="bf16", seq_len=64, device="cuda")
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.01}
EXPERTS |= {"intermediate_size": 128}  # of which an eighth is wide enough for a grouped matmul
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    **TOGGLES,
    "all": ALL_ON,
    "packed": {"data": DataOptions(pack=True)},
    "engine": {"zero_engine": "overlap", "reduce_bucket_size": 0},
    "no prefetch": {"zero_prefetch": False},
    "kept weights": {"reshard_after_forward": False},
    "chunks of tokens": {"overlap_chunks": 2},
    "chunks of heads": {"ulysses_head_chunks": 2},
    "gathered ring": {"ring_backend": "allgather"},
    "second axis": {"tensor_parallel_size": 2},
    "experts": {"model": replace(RUN.model, **EXPERTS)},
    "shared out experts": {
        "mlp": "expert",
        "model": replace(RUN.model, **EXPERTS | {"num_experts": 8}),
    },
    "cut vocabulary": {"vocab_parallel": True, **TOGGLES["tiled_loss_fused"]},
    "fp32": {"dtype": "fp32"},
    "fp32 masters": {"dtype": "fp32", **TOGGLES["optimizer_masters"]},
}
LAYOUTS = [(1, 1), (2, 1), (2, 2), (8, 1), (8, 2)]
"""Ranks, and those of the ring."""
Case = tuple[str, int, int, str]


def run_of(method: str, ranks: int, ring: int, option: str) -> RunConfig:
    sizes = {"world_size": ranks, "ring_parallel_size": ring}
    return replace(BASE, method=method, **sizes, **OPTIONS[option])


def valid(case: Case) -> bool:
    """Whether the run accepts its options together.

    In fp32 no kernel computes a ring's blocks, and FSDP2 leaves cut weights alone: as fake tensors
    these cannot leave the meta device.
    """
    run = run_of(*case)
    if (
        run.dtype == "fp32"
        and run.world_size > 1
        and (run.token_axes.ring > 1 or method_of(run.method).cuts(run))
    ):
        return False
    try:
        run.check()
        method_of(run.method).check(run)
        chunked_block.check(run)
    except ValueError:
        return False
    return True


def cases() -> list[Case]:
    every = (
        (method, ranks, ring, option)
        for method, (ranks, ring), option in product(NAMED, LAYOUTS, OPTIONS)
    )
    return [case for case in every if valid(case)]


def _with_expanded_heads_in_fp32(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Compute attention; refuse kv heads for which CUDA would store all scores."""
    assert q.dtype != torch.float32 or not options.get("enable_gqa"), "kv heads are not expanded"
    return _attention(q, k, v, **options)


_attention = F.scaled_dot_product_attention


def outcome(method: str, ranks: int, ring: int, option: str, fault: str = "none") -> dict[str, Any]:
    """Train two steps; return the traceback, or the second's waits of the host, the order of its
    communication, and what does not wait for what it needs."""
    run = run_of(method, ranks, ring, option)
    rows = run.local_tokens * run.architecture.num_experts_per_tok
    syncs = HostSyncs(rows // run.expert_ranks)
    try:
        with (
            only_gpu(ranks - 1, ranks, syncs.waited) as device,
            patch.object(F, "scaled_dot_product_attention", _with_expanded_heads_in_fp32),
            FAULTS[fault](),
        ):
            mesh = make_mesh(CUDA, run)
            # Weights and tokens are drawn on the host; here they have no values.
            with (
                patch.object(training.checkpoint, "load_or_initialize"),
                FakeTensorMode(allow_non_fake_inputs=True),
            ):
                trainer = training.Trainer(run, method_of(run.method), mesh)
                samples = Samples(run, mesh.replica, mesh.shard, CUDA)
                with syncs:
                    result = trainer.step(samples.step(0))
                    assert result.loss.device == CUDA
                    batches, recorder = samples.step(1), UseRecorder(device)
                    syncs.found.clear()
                    memory_of_step(trainer, batches, None, recorder)
    except Exception:
        return {"error": traceback.format_exc()[-2000:]}
    found = races(device.program, recorder.uses)
    waits = dict(sorted(syncs.found.items()))
    return {"error": "", "waits": waits, "order": order(device.program), "races": found}


def dry_order(case: Case) -> list[tuple[Any, ...]]:
    """Return the order that a dry run of a case on an H100 records."""
    run = replace(run_of(*case), dry_run=True, hardware="h100-80g", device="auto")
    return order(dry_run.count(run, run.world_size - 1, with_program=True).program)
