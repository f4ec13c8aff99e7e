"""Options that a peer cannot have are refused in one line, before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bench.__main__ import main
from bench.config import checks
from bench.runner import processes
from methods.peers import as_method
from methods.peers.registry import PEERS
from odysseus.config.run import RunConfig
from tests.support.peer_bytes import MODEL
from tests.support.small_runs import SIZES, nothing_starts


@pytest.mark.parametrize("name", PEERS)
def test_toggles_that_a_peer_has_not_are_refused(name: str) -> None:
    """The message names the toggle; a toggle that the peer always has may be set."""
    (dtype, *_) = PEERS[name].dtypes
    asked = RunConfig(method=f"peer:{name}", model=MODEL, world_size=2)
    run = as_method.with_peer_defaults(replace(asked, dtype=dtype))
    checks.check(run)
    lacking = [
        *({"activation_checkpointing": True}, {"compile": True}),
        *({"gradient_accumulation_steps": 2}, {"parameter_offload": "cpu"}),
        *({"overlap_chunks": 2}, {"zero_engine": "overlap"}, {"dtype": "fp64"}),
        {"tiled_mlp_compute": "tiled_mlp_compute" not in PEERS[name].overrides},
        {"tiled_loss_compute": "tiled_loss_compute" not in PEERS[name].overrides},
        {"regather": "regather" in PEERS[name].overrides},
        {"reshard_after_forward": "reshard_after_forward" in PEERS[name].overrides},
    ]
    for changed in lacking:
        (key,) = changed
        with pytest.raises(ValueError, match=f"{key} = .* is not for .*{name}; valid: "):
            checks.check(replace(run, **changed))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("run --method peer:none", "method = 'peer:none' is unknown; valid: 'tp', 'tp_sp'"),
        ("sweep --method [tp,peer:none]", "'peer:none' is unknown; valid: 'tp', "),
        (
            "run --method peer:dtensor_tp --tiled_mlp_compute true",
            "tiled_mlp_compute = true is not",
        ),
        ("run --method peer:dtensor_tp --optimizer.offload cpu", "optimizer.offload = cpu is not"),
        ("run --method peer:dtensor_tp --data.pack true", "= true is not for method = peer:dten"),
        ("run --method peer:dtensor_tp --model.type liger", "model.type = liger is not for method"),
        (
            "run --method peer:torch_context_parallel --dry_run true --hardware h100-80g",
            "device = cuda is not for peer torch_context_parallel; valid: cpu",
        ),
        (
            "run --method peer:dtensor_tp --dry_run true --memory_trace file",
            "peer:dtensor_tp is not for memory_trace; valid: tp,",
        ),
        ("run --method peer:dtensor_tp --dtype fp64", "dtype = fp64 is not for peer dtensor_tp; "),
        ("run --method peer:dtensor_tp --save here", "peer:dtensor_tp is not for save; valid: tp,"),
        (
            "run --method peer:dtensor_tp --world_size 4 --ring_parallel_size 2",
            "ring_parallel_size = 2 is not for method = peer:dtensor_tp; valid: 1",
        ),
        (
            "run --method peer:dtensor_tp --world_size 4 --sequence_parallel_size 2",
            "sequence_parallel_size = 2 is not for method = peer:dtensor_tp, which has one "
            "replica; valid: 4",
        ),
        (
            "run --method peer:torch_context_parallel --world_size 4 --ring_parallel_size 2",
            "ring_parallel_size = 2 is not for method = peer:torch_context_parallel; valid: 4",
        ),
        (
            "run --method peer:megatron_tp --world_size 4 --model.num_key_value_heads 2",
            "model.num_key_value_heads = 2 does not divide by world_size = 4, which peer "
            "megatron_tp needs; valid: world_size of [1, 2]",
        ),
        (
            "run --method peer:deepspeed_ulysses --world_size 4 --model.num_key_value_heads 2",
            "which peer deepspeed_ulysses needs; valid: world_size of [1, 2]",
        ),
        ("run --method peer:megatron_tp_sp", "world_size = 1 is not for peer megatron_tp_sp; "),
        ("theory --method peer:dtensor_tp", "peer:dtensor_tp is not for this verb; valid: tp, "),
        ("plan --method peer:dtensor_tp", "peer:dtensor_tp is not for this verb; valid: tp, "),
        ("verify --method peer:dtensor_tp", "peer:dtensor_tp is not for this verb; valid: tp, "),
        ("calibrate --method peer:dtensor_tp", "peer:dtensor_tp is not for this verb; valid: tp"),
        ("compare --method peer:dtensor_tp", "peer:dtensor_tp is not for this verb; valid: tp, "),
    ],
)
def test_refusals(
    command: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(processes, "run_ranks", nothing_starts)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert told in printed.err
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".csv"] == []


@pytest.mark.parametrize("verb", ["run", "sweep"])
def test_a_missing_package(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = replace(PEERS["torchtitan_tp_sp"], package="torch no_such_package")
    monkeypatch.setattr(processes, "run_ranks", nothing_starts)
    monkeypatch.setitem(PEERS, "torchtitan_tp_sp", missing)
    assert main([verb, "--method", "peer:torchtitan_tp_sp", "--world_size", "2"]) == 2
    assert (
        "peer torchtitan_tp_sp needs the package no_such_package; valid: pip install --no-deps -r "
        "requirements-torchtitan.txt, or other peers\n"
    ) in capsys.readouterr().err


def test_a_sweep_marks_sizes_that_a_peer_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "run_ranks", nothing_starts)
    out = tmp_path / "rows.csv"
    flags = f"sweep {SIZES} --world_size 8 --method [peer:dtensor_tp] --out {out}"
    assert main(flags.split()) == 1
    (row,) = pd.read_csv(out).to_dict("records")
    assert (row["method"], row["status"]) == ("peer:dtensor_tp", "invalid")
    assert "model.num_key_value_heads = 4 does not divide by world_size = 8" in row["error"]
