"""Dry runs of libraries' code count what its real ranks do, and run through on GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import pool, rows
from bench.__main__ import main
from bench.meters.flops import FlopMeter
from bench.meters.step import memory_columns, memory_of_step
from bench.meters.traffic import TrafficMeter
from bench.runner import library_dry_run, worker
from bench.runner.peer import Peer
from methods.peers import PEERS, as_method
from odysseus.config.nested import ModelOptions, OptimizerOptions
from odysseus.config.run import RunConfig
from odysseus.parallel.mesh import make_mesh
from tests.support.ranks import run_ranks

FEW = {"dtensor_tp_sp"}
"""Peers of the default suite."""
slow = pytest.mark.slow


def run_of(peer: str, ranks: int, **options: Any) -> RunConfig:
    dtype = PEERS[peer].dtypes[0]
    run = RunConfig(
        method=f"peer:{peer}", world_size=ranks, seq_len=256, dtype=dtype, dry_run=True, **options
    )
    return as_method.with_peer_defaults(run)


def measured(run: RunConfig, peer: str, first_steps: int) -> dict[str, float]:
    """The counts of a later step of this real rank."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    real = Peer(run, peer, make_mesh(device, run))
    for index in range(first_steps):
        real.train([real.batch(index)])
    with TrafficMeter() as traffic, FlopMeter() as flops:
        meter = real.memory_of_step([real.batch(first_steps)])
    return traffic.totals() | flops.columns | memory_columns(meter)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=slow)])
@pytest.mark.parametrize(
    "peer", [pytest.param(name, marks=() if name in FEW else slow) for name in PEERS]
)
def test_a_dry_run_counts_what_real_ranks_do(peer: str, ranks: int) -> None:
    run = run_of(peer, ranks)
    counted = library_dry_run.count(run).columns
    real, *_ = run_ranks(measured, ranks, as_method.matching_run(run), peer, 3)
    for name in ("comm_bytes_total", "comm_calls_total"):
        assert counted[name] == real[name] > 0
    for name in ("matmul_flops", "attention_flops"):
        assert counted[f"{name}_max"] == real[name] > 0
    assert counted["peak_memory_bytes"] == pytest.approx(real["peak_memory_bytes"], rel=0.005)


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(name, marks=() if name == "megatron_tp_sp" else slow)
        for name, peer in PEERS.items()
        if "cuda" in peer.devices and not peer.gpu_package
    ],
)
def test_on_a_gpu(peer: str, tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    flags = f"--method peer:{peer} --world_size 8 --model.num_key_value_heads 8 --dtype bf16"
    flags += f" --hardware h100-80g --dry_run true --out {out}"
    assert main(["run", *flags.split()]) == 0
    (row,) = rows.read(out).to_dict("records")
    assert (row["status"], row["backend"], row["hardware"]) == ("ok", "fake", "h100-80g")
    for name in ("comm_bytes_total", "peak_memory_bytes", "matmul_flops_max", "step_ms_p50"):
        assert float(row[name]) > 0


def measured_model(run: RunConfig) -> dict[str, float]:
    """The counts of the second step of this real rank's model of Transformers."""
    torch.set_num_threads(1)
    trainer, samples = worker.start(run, torch.device("cpu"))
    trainer.step(samples.step(0))
    with TrafficMeter() as traffic, FlopMeter() as flops:
        meter = memory_of_step(trainer, samples.step(1))
    return traffic.totals() | flops.columns | memory_columns(meter)


OFFLOAD = {"activation_checkpoint_cpu_offload": True, "tiled_mlp_compute": True}


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        pytest.param(2, OFFLOAD, id="tricks"),
        pytest.param(2, {}, id="plain", marks=slow),
        pytest.param(4, {"ring_parallel_size": 2, "dtype": "bf16"}, id="ring", marks=slow),
        pytest.param(4, {"sequence_parallel_size": 2}, id="replicas", marks=slow),
        pytest.param(2, {"optimizer": OptimizerOptions(offload="cpu")}, id="host", marks=slow),
        pytest.param(2, {"gradient_accumulation_steps": 2}, id="accumulation", marks=slow),
    ],
)
def test_a_model_of_transformers(ranks: int, options: dict[str, Any]) -> None:
    model = ModelOptions(implementation="transformers")
    run = RunConfig(method="ulysses", world_size=ranks, seq_len=256, model=model, **options)
    counted = library_dry_run.count(replace(run, dry_run=True)).columns
    real = run_ranks(measured_model, ranks, run)[counted["rank"]]
    for name in ("matmul_flops", "attention_flops"):
        assert counted[f"{name}_mean"] == real.pop(name) > 0
    assert {name: counted[name] for name in real} == real
    assert real["comm_bytes_total"] > 0


def test_a_peer_that_fails_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(Exception):
        """An exception that cannot be sent to another process."""

        def __reduce__(self) -> str:
            raise TypeError

    def fail(run: RunConfig) -> None:
        raise Failing("no kernel")

    monkeypatch.setattr(library_dry_run, "_count", fail)
    run = run_of("dtensor_tp", 2)
    said = library_dry_run._count_or_say(run)
    assert isinstance(said, str)
    assert said.startswith("Failing: no kernel (runner/test_library_dry_run.py:")
    monkeypatch.setattr(pool, "one_new", lambda _: pool.Here())
    out = tmp_path / "rows.csv"
    flags = f"--method peer:dtensor_tp --world_size 2 --dry_run true --out {out}"
    assert main(["run", *flags.split()]) == 1
    (row,) = rows.read(out).to_dict("records")
    assert row["status"] == "error"
    assert row["error"].startswith("Failing: no kernel")
