"""Peers compute the same as this project's methods, and a comparison writes the measured
columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch

from bench.__main__ import main
from bench.commands.compare import COLUMNS
from bench.report.charts.compare import NUMBERS
from bench.runner import compare, launch
from bench.runner.peer import spread
from methods.peers import plain
from methods.peers.checks import check_device
from methods.peers.optimizer import AdamW
from methods.peers.peer import PARTS, Peer
from methods.peers.registry import PEERS
from odysseus.config.run import RunConfig
from odysseus.io.text import Batch
from odysseus.training.block_trainer import Stream
from tests.support.peer_bytes import (
    BYTES,
    RUN,
    TOKENS,
    bytes_of_blocks,
    bytes_of_megatron_tp,
    bytes_of_yunchang_ring,
)
from tests.support.ranks import run_ranks

CPU = torch.device("cpu")
Asked = list[tuple[str, str]]
"""Peers and parts."""
IN_FP32 = [name for name, peer in PEERS.items() if "fp32" in peer.dtypes]


def compare_all(run: RunConfig, asked: Asked) -> dict[tuple[str, str], dict[str, Any]]:
    """Return each comparison with this project's method, of one pair of steps."""
    torch.set_num_threads(1)
    return {
        (name, part): compare.measured_in_group(PEERS[name].matching_run(run), name, 1, CPU, part)
        for name, part in asked
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "parts"), [(2, ("model",)), (2, ("blocks",)), (4, ("model",))]
)
def test_every_peer_agrees_in_fp32(world_size: int, parts: tuple[str, ...]) -> None:
    """Compare the loss, or the blocks' output and input gradient, and every weight's gradient in
    fp32, to 1e-5."""
    run = replace(RUN, world_size=world_size)
    asked = [(name, part) for part in parts for name in IN_FP32]
    for comparisons in run_ranks(compare_all, world_size, run, asked):
        assert {which: row["error"] for which, row in comparisons.items() if "error" in row} == {}
        found = {which: row["largest_difference"] for which, row in comparisons.items()}
        assert {which for which, difference in found.items() if difference < 1e-5} == {*asked}
        for (name, part), row in comparisons.items():
            assert row["tensors_checked"] == {"model": 1 + 3, "blocks": 2}[part] + 2 * 9, name
            assert 0 < row["ratio_p20"] <= row["ratio_p50"] <= row["ratio_p80"], name
            assert min(row["ours_peak_bytes"], row["peer_peak_bytes"]) > 0, name
        for name, expected in BYTES.items() if "model" in parts else ():
            assert comparisons[name, "model"]["peer_comm_bytes"] == expected(world_size), name
        if "blocks" in parts:
            sent = {name: comparisons[name, "blocks"]["peer_comm_bytes"] for name in IN_FP32}
            assert sent == bytes_of_blocks(world_size)


@pytest.mark.slow
def test_every_peer_agrees_in_bf16() -> None:
    """Peers agree to bf16 rounding, and the stream is sent in bf16: half the bytes of fp32. Peers
    run in reverse order, so that none needs the set-up of another."""
    run = replace(RUN, world_size=2, dtype="bf16")
    asked = [*((name, "model") for name in reversed(PEERS)), ("yunchang_ring", "blocks")]
    for comparisons in run_ranks(compare_all, 2, run, asked):
        assert {which: row["error"] for which, row in comparisons.items() if "error" in row} == {}
        differ = {which: row["largest_difference"] for which, row in comparisons.items()}
        assert {n for n, difference in differ.items() if 1e-4 < difference < 2e-2} == {*asked}
        loss_bytes = 2 * 3 * 4 * TOKENS // 2
        sent = comparisons["megatron_tp", "model"]["peer_comm_bytes"] - loss_bytes
        assert sent == (bytes_of_megatron_tp(2) - loss_bytes) // 2
        for part in PARTS:
            sent = comparisons["yunchang_ring", part]["peer_comm_bytes"]
            assert sent == bytes_of_yunchang_ring(2, part)


class Wrong:
    """A peer with a wrong loss, or a wrong gradient of its blocks' input."""

    whole_samples = True

    def __init__(self, run: RunConfig, mesh: Any, part: str) -> None:
        self.model = plain.initialized(run, part=part)
        self.optimizer = AdamW(self.model, run)

    def forward_backward(self, batch: Any, tokens: int) -> torch.Tensor:
        logits = self.model(batch.input_ids, batch.position_ids)
        loss = 1.01 * plain.mean_loss(logits, batch, tokens)
        loss.backward()
        return loss.detach()

    def blocks_forward_backward(self, stream: Stream) -> torch.Tensor:
        out = plain.run_blocks(self.model, stream)
        assert stream.x.grad is not None
        stream.x.grad[:, 0] *= 2
        return out

    def whole_gradients(self) -> Any:
        return ((n, p.grad) for n, p in self.model.named_parameters())


def compare_wrong_peer(run: RunConfig) -> list[dict[str, Any]]:
    with (
        patch.dict(PEERS, wrong=Peer("tp", "torch", "", "")),
        patch.object(Peer, "load", lambda self: Wrong),
    ):
        return [compare.measured_in_group(run, "wrong", 1, CPU, part) for part in PARTS]


def test_a_peer_that_computes_something_else_is_not_timed() -> None:
    rows, others = run_ranks(compare_wrong_peer, 2, replace(RUN, world_size=2, method="tp"))
    assert rows == others
    for row in rows:
        assert row.keys() == {"status", "error"}
        assert row["status"] == "invalid"
        assert row["error"].startswith("wrong computes something else: ")
    assert "input's gradient is off by" in rows[1]["error"]


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model.num_hidden_layers 2 --world_size 2 --seq_len 64 --pairs 2 --part blocks"
    out = tmp_path / "compare.csv"
    assert main(["compare", *flags.split(), "--peers", "dtensor_tp_sp", "--out", str(out)]) == 0
    (row,) = pd.read_csv(out).to_dict("records")
    assert list(row) == list(COLUMNS)
    assert (row["peer"], row["method"], row["status"]) == ("dtensor_tp_sp", "tp_sp", "ok")
    assert (row["mode"], row["device"], row["part"]) == ("measured", "cpu", "blocks")
    assert row["differs"] == PEERS["dtensor_tp_sp"].blocks
    assert out.with_suffix(".png").stat().st_size > 1000
    printed = capsys.readouterr().out
    assert "tp_sp beside dtensor_tp_sp, 2 ranks, 64 tokens, blocks alone: " in printed


def test_a_comparison_with_a_row_is_not_repeated(tmp_path: Path) -> None:
    """This project's toggles make another cell. A failed comparison is tried again on request."""

    def started(run: RunConfig, measure: Any) -> dict[str, Any]:
        given.append((measure.keywords["peer"], run.zero_engine))
        failed = measure.keywords["peer"] == "fairscale_tp" and len(given) < 3
        return {"status": "error" if failed else "ok", "error": ""} | dict.fromkeys(
            NUMBERS[3:], 1.0
        )

    given: list[tuple[str, str]] = []
    out = tmp_path / "compare.csv"
    flags = f"--world_size 2 --seq_len 64 --peers dtensor_tp,fairscale_tp --out {out}"
    with patch.object(launch, "run_workers", started):
        assert main(["compare", *flags.split()]) == 1
        first = out.read_text()
        assert main(["compare", *flags.split()]) == 0
        assert out.read_text() == first
        assert main(["compare", *flags.split(), "--retry_failed", "true"]) == 0
        assert main(["compare", *flags.split(), "--zero_engine", "overlap"]) == 0
    both = [("dtensor_tp", "fsdp2"), ("fairscale_tp", "fsdp2")]
    assert given == [*both, both[1], ("dtensor_tp", "overlap"), ("fairscale_tp", "overlap")]
    assert out.read_text().startswith(first)
    assert pd.read_csv(out)["zero_engine"].fillna("").tolist() == ["", "", "", *["overlap"] * 2]


def test_rows_of_cells_are_no_file_for_comparisons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    out.write_text("method,status\ntp,ok\n")
    assert main(["compare", "--peers", "dtensor_tp", "--out", str(out)]) == 2
    assert "a file without the columns ['peer']; valid: a new file" in capsys.readouterr().err
    assert out.read_text() == "method,status\ntp,ok\n"


def test_all_peers_are_those_of_a_cells_dtype(tmp_path: Path) -> None:
    """Compare each peer on the whole model, unless blocks are asked for."""

    def started(run: RunConfig, measure: Any) -> dict[str, Any]:
        given.append((measure.keywords["peer"], run.dtype, measure.keywords["part"]))
        return {"status": "error", "error": "not started"}

    given: list[tuple[str, str, str]] = []
    flags = "--world_size 2 --seq_len 64 --dtype [fp32,bf16]"
    with patch.object(launch, "run_workers", started):
        assert main(["compare", *flags.split(), "--out", str(tmp_path / "x.csv")]) == 1
    expected = [(name, "fp32", "model") for name in IN_FP32]
    assert given == expected + [(name, "bf16", "model") for name in PEERS]
    assert {*PEERS} - {*IN_FP32} == {"yunchang_ring"}
    differs = pd.read_csv(tmp_path / "x.csv").groupby("peer")["differs"].first()
    assert differs["fairscale_tp"] == PEERS["fairscale_tp"].differs("model")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--peers none", "peers: 'none' is none; valid: all, dtensor_tp, "),
        ("--pairs 0", "pairs is 0; it must be at least 1"),
        ("--part layers", "part is 'layers'; valid: model, blocks"),
        ("--peers yunchang_ring", "dtype = fp32 is not for peer yunchang_ring; valid: bf16"),
        ("--dtype fp64", "dtype = fp64 is not for peer dtensor_tp; valid: fp32, bf16"),
        ("--world_size 4 --sequence_parallel_size 2", "sequence_parallel_size = 2 is not for"),
        ("--peers megatron_tp_sp", "world_size = 1 is not for peer megatron_tp_sp; valid: 2 or"),
        (
            "--world_size 4 --model.num_key_value_heads 2",
            "model.num_key_value_heads = 2 does not divide by world_size = 4, which peer "
            "dtensor_tp needs; valid: world_size of [1, 2]",
        ),
        ("--model.use_qk_norm true", "model.use_qk_norm = true is not in the peers' plain model"),
    ],
)
def test_refusals(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *flags.split(), "--out", str(tmp_path / "x.csv")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_gpus_need() -> None:
    missing = replace(PEERS["yunchang_ring"], gpu_package="no_such_package")
    with patch.dict(PEERS, yunchang_ring=missing):
        check_device("yunchang_ring", "cpu")
        with pytest.raises(ValueError, match="device = cuda: peer yunchang_ring needs the package"):
            check_device("yunchang_ring", "cuda")


def test_a_missing_package(capsys: pytest.CaptureFixture[str]) -> None:
    missing = replace(PEERS["fairscale_tp"], package="no_such_package")
    with patch.dict(PEERS, fairscale_tp=missing):
        assert main(["compare", "--peers", "fairscale_tp"]) == 2
    printed = capsys.readouterr().err
    assert "fairscale_tp needs the package no_such_package; valid: pip install -r" in printed


def test_checked_tokens_are_of_the_whole_vocabulary_and_the_same_cut_or_not() -> None:
    ids = torch.randint(256, (1, 1024), generator=torch.Generator().manual_seed(0))
    places = torch.arange(1024)[None]
    found = spread(Batch(ids, ids, places), 4096)
    assert found.input_ids.unique().numel() > 800
    assert ids.unique().numel() <= 256
    shard = spread(Batch(ids[:, 512:], ids[:, 512:], places[:, 512:]), 4096)
    assert torch.equal(shard.input_ids, found.input_ids[:, 512:])
    assert torch.equal(found.labels, ids)
