"""Peers as methods of run and sweep: their rows, and what becomes of a wrong one."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bench import rows
from bench.__main__ import main
from bench.meters.memory import KINDS
from bench.meters.traffic import PURPOSES
from bench.report import catalogue, inputs, labels
from bench.report.charts import ring_balance
from bench.runner import launch, processes, worker
from methods.peers import as_method, plain
from methods.peers.optimizer import AdamW
from methods.peers.peer import Peer
from methods.peers.registry import PEERS
from odysseus.config.run import ModelOptions, RunConfig
from odysseus.io.text import Batch
from odysseus.parallel.mesh import Mesh
from tests.support.paths import RESULTS
from tests.support.peer_bytes import RUN, bytes_of_dtensor_tp
from tests.support.ranks import run_ranks
from tests.support.small_runs import SIZES, nothing_starts

CPU = torch.device("cpu")
BOTH = "[tp,peer:dtensor_tp,peer:fairscale_tp]"
SWEEP = f"sweep {SIZES} --world_size 2 --tiled_loss_compute false --method {BOTH}"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of ours and of two peers."""
    out = tmp_path_factory.mktemp("swept") / "rows.csv"
    assert main([*SWEEP.split(), "--out", str(out)]) == 0
    return out


def by_method(path: Path) -> dict[str, dict[str, str]]:
    return {row["method"]: row for row in rows.read(path).to_dict("records")}


def test_a_sweep_has_ours_and_peers(swept: Path) -> None:
    found = by_method(swept)
    assert [*found] == ["tp", "peer:dtensor_tp", "peer:fairscale_tp"]
    ours = found.pop("tp")
    for name, row in found.items():
        assert (row["status"], row["mode"], row["device"]) == ("ok", "measured", "cpu"), name
        for column in ("step_ms_p50", "tokens_per_s", "peak_memory_bytes"):
            assert float(row[column]) > 0, (name, column)
        for column in ("loss_first", "loss_last"):  # also after an update
            assert float(row[column]) == pytest.approx(float(ours[column]), rel=1e-5), name
    dtensor = found["peer:dtensor_tp"]
    assert int(dtensor["comm_bytes_total"]) == bytes_of_dtensor_tp(2)
    assert dtensor["matmul_flops_max"] == ours["matmul_flops_max"]
    assert dtensor["peak_memory_bytes"] > ours["peak_memory_bytes"]


def last_losses(runs: list[RunConfig]) -> list[float]:
    """Measure cells one after another and return their last losses."""
    torch.set_num_threads(1)
    return [launch.measure_in_group(run, CPU)["loss_last"] for run in runs]


def test_peers_train_as_ours_do() -> None:
    """Updates too, of each kind of optimizer and sharding: the loss after six of them."""
    run = replace(RUN, world_size=2, method="ulysses")
    names = ("yunchang_ulysses", "deepspeed_ulysses", "megatron_tp_sp")
    peers = [as_method.with_peer_defaults(replace(run, method=f"peer:{name}")) for name in names]
    for ours, *theirs in run_ranks(last_losses, 2, [run, *peers]):
        assert theirs == pytest.approx([ours] * len(names), rel=1e-5)


def test_what_only_ours_can_tell_is_empty(swept: Path) -> None:
    of_ours = [
        *("theory_comm_bytes_total", "theory_peak_activation_bytes", "theory_peak_host_bytes"),
        *("peak_activation_bytes", "peak_host_bytes", "grad_norm_first", "grad_norm_last"),
        *(f"comm_bytes_{purpose}" for purpose in PURPOSES),
        *(f"peak_memory_{kind}_bytes" for kind in KINDS),
    ]
    found = by_method(swept)
    assert "" not in {found["tp"][column] for column in of_ours}
    for name in ("peer:dtensor_tp", "peer:fairscale_tp"):
        assert {found[name][column] for column in of_ours} == {""}


def test_a_sweep_skips_peers_that_have_rows(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "run_ranks", nothing_starts)
    assert main([*SWEEP.split(), "--out", str(swept)]) == 0
    assert "3 cells: 3 had rows" in capsys.readouterr().out


def test_the_report_draws_peers_beside_ours(swept: Path, tmp_path: Path) -> None:
    given = inputs.read([swept])
    cards = {card.name: card for card in catalogue.cards(given, inputs.drawable(given))}
    (chart,) = cards["throughput"].charts
    drawn = [name for name in chart.legend if not name.startswith("noisy")]
    assert drawn == ["tp", "peer:dtensor_tp", "peer:fairscale_tp"]
    assert given.notes == []
    assert main(["report", "--rows", str(swept), "--out", str(tmp_path)]) == 0
    assert "peer:fairscale_tp" in (tmp_path / "throughput.svg").read_text()
    assert "peer:fairscale_tp" in (tmp_path / "report.html").read_text()


def test_no_two_layouts_look_alike() -> None:
    names = labels.peer_methods()
    looks = {name: (s["color"], s["marker"]) for name in names for s in [labels.style_of(name)]}
    ours = {(s["color"], s["marker"]) for s in map(labels.style_of, ("tp", "tp_sp", "ulysses"))}
    assert len(ours | set(looks.values())) == len(names) + 3


def test_run_settles_what_a_peer_always_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch's context parallelism is a ring of all ranks."""
    out = tmp_path / "rows.csv"
    flags = f"run {SIZES} --method peer:torch_context_parallel --world_size 2 --out {out}"
    assert main(flags.split()) == 0
    assert "peer:torch_context_parallel x ring 2 on 2 x cpu" in capsys.readouterr().out
    (row,) = by_method(out).values()
    assert (row["sequence_parallel_size"], row["ring_parallel_size"]) == ("1", "2")
    assert (row["status"], row["tiled_loss_compute"]) == ("ok", "False")
    data = inputs.drawable(inputs.read([out]))
    assert [*data["layout"]] == ["peer:torch_context_parallel"]


def test_the_balance_of_rings_is_ours() -> None:
    data = inputs.drawable(inputs.read([RESULTS / "ring.csv"]))
    theirs = data.assign(method="peer:torch_context_parallel", attention_flops_max=1.0)
    both = pd.concat([theirs, data])
    assert ring_balance.chart(both) == ring_balance.chart(data)


class Wrong:
    """The whole model on every rank, with something wrong."""

    whole_samples = True

    def __init__(self, run: RunConfig, mesh: Mesh, part: str) -> None:
        self.model, self.mesh = plain.initialized(run), mesh
        self.optimizer = AdamW(self.model, run)

    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        logits = self.model(batch.input_ids, batch.position_ids)
        loss = plain.mean_loss(logits, batch, tokens)
        loss.backward()
        return loss.detach()

    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.model.named_parameters():
            assert parameter.grad is not None
            yield name, parameter.grad


class WrongOnOneRank(Wrong):
    def forward_backward(self, batch: Batch, tokens: int) -> Tensor:
        return super().forward_backward(batch, tokens) * (1 + 0.01 * self.mesh.world.rank)


class Forgets(Wrong):
    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        return (found for found in super().whole_gradients() if found[0] != "lm_head.weight")


class NoNumber(Wrong):
    def whole_gradients(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, x if "lm_head" in name else x * math.nan) for name, x in self._found())

    def _found(self) -> Iterator[tuple[str, Tensor]]:
        return super().whole_gradients()


WRONG = {
    "none": Peer("tp", "torch", "wrong:Wrong", ""),
    "one_rank": Peer("tp", "torch", "wrong:WrongOnOneRank", ""),
    "forgets": Peer("tp", "torch", "wrong:Forgets", ""),
    "no_number": Peer("tp", "torch", "wrong:NoNumber", ""),
}


@contextmanager
def wrong_ones() -> Iterator[None]:
    """Peers that compute something else are there."""
    name = "methods.peers.wrong"
    sys.modules[name] = sys.modules[__name__]
    try:
        with patch.dict(PEERS, WRONG):
            yield
    finally:  # of this name alone: patch.dict would forget all that was first imported meanwhile
        del sys.modules[name]


def of_wrong_ones(run: RunConfig) -> dict[str, dict[str, Any]]:
    with wrong_ones():
        return {
            name: launch.measure_in_group(replace(run, method=f"peer:{name}"), CPU)
            for name in WRONG
        }


def test_what_is_not_the_same_is_not_timed() -> None:
    """No rank times a peer whose results differ, even if only one rank sees the difference."""
    asked = replace(RUN, method="peer:dtensor_tp", world_size=2, steps=1)
    run = as_method.with_peer_defaults(asked)
    for found in run_ranks(of_wrong_ones, 2, run, fresh=True):
        assert found.pop("none").get("status", "ok") == "ok"
        for name, row in found.items():
            assert row.keys() == {"status", "error"}, name
            assert (row["status"], name in row["error"]) == ("invalid", True)
        assert "loss is off by 1.0e-02" in found["one_rank"]["error"]
        assert "lm_head.weight is off by inf" in found["forgets"]["error"]
        assert "is off by inf" in found["no_number"]["error"]


def measure_with_wrong_ones(run: RunConfig) -> dict[str, Any]:
    """Measure a cell as a worker does, with the wrong peers registered."""
    with wrong_ones():
        return launch.measure(run)


def test_an_invalid_peer_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_round, out = launch.run_round, tmp_path / "rows.csv"
    monkeypatch.setattr(
        launch, "run_round", lambda r, is_first: run_round(r, measure_with_wrong_ones)
    )
    flags = f"sweep {SIZES} --world_size 2 --method [peer:one_rank,peer:dtensor_tp] --out {out}"
    with wrong_ones():
        assert main(flags.split()) == 1
    first, second = rows.read(out).to_dict("records")
    assert (first["method"], first["status"]) == ("peer:one_rank", "invalid")
    assert first["error"].startswith("one_rank computes something else: loss is off by ")
    assert {first["step_ms_p50"], first["comm_bytes_total"], first["peak_memory_bytes"]} == {""}
    assert (second["method"], second["status"]) == ("peer:dtensor_tp", "ok")
    assert "invalid: peer:one_rank: one_rank computes something else" in capfd.readouterr().err


def test_a_joined_sweep_goes_on_past_an_invalid_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks know that it is; other failures end the job."""
    outcomes = {
        "peer:dtensor_tp": {"status": "invalid", "error": "another loss"},
        "tp": {"status": "ok"},
        "tp_sp": {"status": "error", "error": "gone"},
        "ulysses": {"status": "ok"},
    }
    monkeypatch.setattr(
        launch, "measure_in_group", lambda run, device, meters: outcomes[run.method]
    )
    here = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (here | {"MASTER_PORT": "0"}).items():
        monkeypatch.setenv(name, value)
    out, threads = tmp_path / "rows.csv", torch.get_num_threads()
    methods = ",".join(outcomes)
    flags = f"sweep {SIZES} --device cpu --method [{methods}] --out {out}"
    with pytest.raises(SystemExit, match="1"):
        main(flags.split())
    torch.set_num_threads(threads)
    assert [*rows.read(out)["status"]] == ["invalid", "ok", "error"]


def from_a_checkpoint(run: RunConfig, folder: str) -> dict[str, Any]:
    """A peer's cell with the weights that ours has saved, during whose steps ours is gone."""
    worker.measure_in_group(run, CPU, folder)
    dist.barrier()
    begun: list[weakref.ref[Any]] = []
    start, timed_steps = worker.start, worker.timed_steps

    def started(*args: Any) -> Any:
        trainer, samples = start(*args)
        begun.append(weakref.ref(trainer.model))
        return trainer, samples

    def timed(*args: Any) -> Any:
        assert [ours() for ours in begun] == [None]
        return timed_steps(*args)

    model = ModelOptions(name_or_path=folder)
    theirs = as_method.with_peer_defaults(replace(run, method="peer:fairscale_tp", model=model))
    with patch.object(worker, "start", started), patch.object(worker, "timed_steps", timed):
        return launch.measure_in_group(theirs, CPU)


def test_a_peer_reads_a_checkpoint(tmp_path: Path) -> None:
    run = replace(RUN, method="tp", world_size=2, steps=2, seed=7)
    for row in run_ranks(from_a_checkpoint, 2, run, str(tmp_path / "saved")):
        assert "status" not in row, row
        # ln(256) before any step; less after the two, and two of warm-up, that were saved.
        assert row["loss_first"] < 5.4
