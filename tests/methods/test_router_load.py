"""Experts that get unequal loads in a dry run: shares, real ranks with the same load, theory."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from bench import rows
from bench.__main__ import main
from bench.config import checks
from bench.meters.memory import MemoryMeter
from bench.simulator import dry_run, predict
from bench.simulator.fake_world import only_rank
from bench.simulator.program import Op
from bench.simulator.recorder import Recorder
from bench.theory import traffic as theory_traffic
from odysseus.config import router_load
from odysseus.config.architecture import Architecture
from odysseus.config.run import RunConfig
from odysseus.model import experts
from tests.support.dry_run import check_all, counted, measured
from tests.support.marks import slow
from tests.support.runs import MODEL, RUN

EXPERTS = replace(MODEL, intermediate_size=16, num_experts=8, num_experts_per_tok=2)
BASE = replace(RUN, method="ulysses+expert", model=EXPERTS, seq_len=80, dtype="fp32")
COUNTS = [3, 0, 1, 2, 0, 5, 4, 5]
"""A file's numbers: the experts of the last of two or four ranks get the most rows."""


@pytest.fixture
def loads(tmp_path: Path) -> dict[str, str]:
    file = tmp_path / "load.txt"
    file.write_text(", ".join(map(str, COUNTS[:4])) + "\n" + " ".join(map(str, COUNTS[4:])) + "\n")
    return {"balanced": "balanced", "zipf": "zipf", "file": str(file)}


def test_a_file_and_zipf_give_each_expert_its_share(loads: dict[str, str]) -> None:
    assert router_load.shares("balanced", 4, 2) == (Fraction(1, 4),) * 4
    of_file = router_load.shares(loads["file"], 8, 2)
    assert of_file == tuple(Fraction(count, 20) for count in COUNTS)
    file = Path(loads["file"]).with_name("decimals.txt")
    file.write_text("0.5 0.3\n0.15 0.05\n")  # whose floating point sum is below 1
    assert router_load.shares(str(file), 4, 2) == (*(Fraction(n, 20) for n in (10, 6, 3, 1)),)
    unit = 1 / sum(Fraction(1, k) for k in range(1, 9))
    assert router_load.shares("zipf", 8, 2) == tuple(unit / k for k in range(1, 9))


@pytest.mark.parametrize(("experts", "per_token"), [(128, 8), (8, 7), (4, 4), (2, 1), (1, 1)])
def test_no_expert_of_zipf_gets_a_token_twice(experts: int, per_token: int) -> None:
    shares = router_load.shares("zipf", experts, per_token)
    assert sum(shares) == 1
    assert max(shares) <= Fraction(1, per_token)
    below = [share for share in shares if share < Fraction(1, per_token)]
    first = len(shares) - len(below) + 1
    assert below == [below[0] * first / k for k in range(first, experts + 1)]


@pytest.mark.parametrize("rows", [0, 1, 7, 160, 163])
def test_rows_are_whole_and_add_up(rows: int) -> None:
    shares = router_load.shares("zipf", 8, 2)
    of_experts = router_load.rows_of(rows, shares)
    assert sum(of_experts) == rows
    assert all(abs(n - rows * share) < 1 for n, share in zip(of_experts, shares, strict=True))
    of_ranks = router_load.rows_of_ranks(rows, shares, 4)
    assert of_ranks == [sum(of_experts[at : at + 2]) for at in (0, 2, 4, 6)]


def given(load: str) -> Callable[[Tensor, Architecture], tuple[Tensor, Tensor]]:
    """Return a router that gives each expert its share of the rows."""
    choose = experts.choose

    def of_load(logits_TE: Tensor, a: Architecture) -> tuple[Tensor, Tensor]:
        weights_TK, experts_TK = choose(logits_TE, a)
        shares = router_load.shares(load, a.num_experts, a.num_experts_per_tok)
        counts = torch.tensor(router_load.rows_of(experts_TK.numel(), shares))
        chosen = torch.arange(a.num_experts).repeat_interleave(counts)
        experts_TK.data.copy_(chosen.view_as(experts_TK))  # backward has this tensor saved
        return weights_TK, experts_TK

    return of_load


def measured_with_load(runs: list[RunConfig]) -> list[dict[str, Any]]:
    (load,) = {run.router_load for run in runs}
    with mock.patch.object(experts, "choose", given(load)):
        return measured(runs)


TILES = {"tiled_mlp_compute": True, "activation_checkpointing": True}


@pytest.mark.parametrize("load", ["zipf", "file"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"world_size": 2},
        slow({"world_size": 4}),
        slow({"world_size": 4, "expert_parallel_size": 2}),
        slow({"world_size": 4, "ring_parallel_size": 2, "expert_parallel_size": 4}),
        slow({"world_size": 4, "sequence_parallel_size": 2, "expert_parallel_size": 4}),
    ],
)
def test_a_dry_run_counts_what_ranks_with_this_load_do(
    loads: dict[str, str], load: str, sizes: dict[str, int]
) -> None:
    base = replace(BASE, router_load=loads[load], **sizes)
    shared = replace(EXPERTS, shared_expert_intermediate_size=24, router_aux_loss_coef=0.1)
    runs = [base, replace(base, **TILES), replace(base, dtype="bf16", model=shared)]
    for run in runs:
        checks.check(replace(run, dry_run=True))
        for rank in range(run.world_size):
            closed = theory_traffic.step_traffic(run, rank)
            assert counted(run, rank)["comm_bytes_total"] == closed.total
    check_all(runs, [0, base.world_size - 1], measured_with_load)


def test_the_rank_with_most_rows_is_counted(loads: dict[str, str]) -> None:
    """zipf's first experts are those of rank 0; the file's fullest are those of the last rank, or
    in the middle of a ring."""
    base = replace(BASE, world_size=4, dry_run=True, seq_len=640)
    ranks = {name: dry_run.heaviest_rank(replace(base, router_load=loads[name])) for name in loads}
    assert ranks == {"balanced": 0, "zipf": 0, "file": 3}
    for axes in ({"sequence_parallel_size": 2}, {"ring_parallel_size": 2}):
        of_file = replace(base, router_load=loads["file"], expert_parallel_size=4, **axes)
        assert dry_run.heaviest_rank(of_file) == 3
    middle = Path(loads["file"]).with_name("middle.txt")
    middle.write_text("0 0 1 1 4 4 1 1")
    in_ring = {"ring_parallel_size": 4, "expert_parallel_size": 4, "router_load": str(middle)}
    assert dry_run.heaviest_rank(replace(base, **in_ring)) == 2


def test_flops_are_those_of_all_ranks(loads: dict[str, str]) -> None:
    """The row of any rank has the most, and the mean."""
    run = replace(BASE, world_size=4, dry_run=True, router_load=loads["zipf"], **TILES)
    of_ranks = [dry_run.count(run, rank) for rank in range(4)]
    matmul = [one.flops["matmul_flops"] for one in of_ranks]
    assert len({*matmul}) > 1
    for one in of_ranks:
        columns = dry_run.columns(run, one)
        assert columns["matmul_flops_max"] == max(matmul)
        assert columns["matmul_flops_mean"] == pytest.approx(sum(matmul) / 4, rel=1e-12)


def test_the_slowest_rank_is_timed(tmp_path: Path) -> None:
    """Rank 1 has all rows of 2, and rank 0, of which memory may be counted, none."""
    file = tmp_path / "load.txt"
    file.write_text("0 0 0 0 1 1 1 1")
    run = replace(
        BASE, world_size=2, dtype="bf16", dry_run=True, hardware="h100-80g",
        router_load=str(file), model=replace(EXPERTS, intermediate_size=4096), seq_len=2**16,
    )  # fmt: skip
    steps_s = []
    for rank in (0, 1, -1):
        of_rank = replace(run, rank=rank)
        simulated = predict.timeline(of_rank, predict.count(of_rank))
        assert simulated is not None
        steps_s.append(simulated.step_s)
    assert steps_s[0] < steps_s[1] == steps_s[2]
    simulated = predict.timeline(run, dry_run.count(run, 0, with_program=True))
    assert simulated is not None
    assert simulated.step_s == steps_s[1]


def test_an_exchange_lasts_as_long_as_the_larger_side() -> None:
    """Rank 0 sends little and receives much."""
    with only_rank(0, 2, on_gpu=True) as device, Recorder(device, MemoryMeter()):
        given, taken = torch.empty(10, device="meta"), torch.empty(40, device="meta")
        dist.all_to_all_single(taken, given, output_split_sizes=[8, 32], input_split_sizes=[8, 2])
    (op,) = [op for op in device.program if isinstance(op, Op) and op.kind == "all_to_all"]
    assert (op.bytes, op.sizes) == (32 * 4, (2 * 32 * 4,))


def test_bytes_are_in_proportion_to_the_length(loads: dict[str, str]) -> None:
    """The lines of which `theory` prints crossings start from lengths with few rows a rank."""
    run = replace(BASE, world_size=4, router_load=loads["file"])
    slope, fixed = theory_traffic.line(run)
    for length in (640, 6400):
        total = theory_traffic.step_traffic(replace(run, seq_len=length)).total
        assert float(slope * length + fixed) == pytest.approx(total, rel=1e-6)


def test_more_rows_take_longer_where_ranks_share_out_experts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 0 computes more of zipf's rows. With MLP zero each rank computes all of its tokens'."""
    times, peaks = {}, {}
    for method in ("ulysses+expert", "ulysses"):
        for load in ("balanced", "zipf"):
            flags = f"--dry_run true --hardware h100-80g --method {method} --router_load {load}"
            model = "--model.name_or_path mixtral-8x7b --model.num_hidden_layers 2 --world_size 8"
            out = tmp_path / f"{method}_{load}.csv"
            assert main(["run", *flags.split(), *model.split(), "--dtype", "bf16",
                         "--seq_len", "65536", "--out", str(out)]) == 0  # fmt: skip
            row = dict(
                zip(*(line.split(",") for line in out.read_text().splitlines()), strict=False)
            )
            assert row["router_load"] == load.replace("balanced", "")
            assert row["router_load_sha256"] == ""
            times[method, load] = float(row["step_ms_p50"])
            peaks[method, load] = int(row["peak_memory_bytes"])
            assert ("zipf load" in capsys.readouterr().out) == (load == "zipf")
    assert times["ulysses+expert", "zipf"] > 1.2 * times["ulysses+expert", "balanced"]
    assert peaks["ulysses+expert", "zipf"] > peaks["ulysses+expert", "balanced"]
    assert times["ulysses", "zipf"] == times["ulysses", "balanced"]
    assert peaks["ulysses", "zipf"] == peaks["ulysses", "balanced"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 2 3", "has 3 numbers; valid: 8, one for each of model.num_experts"),
        (
            "1 1 1 1 1 1 1 8",
            "gives expert 7 0.5333 of all rows; valid: up to 1/2, as the 2 experts",
        ),
        ("", "has 0 numbers; valid: 8, one for each"),
        ("1 1 1 1 1 1 1 -1", "cannot be read: '-1' is negative or not finite; valid: balanced,"),
        ("0 0 0 0 0 0 0 1e-999999999", "has only zeros; valid: balanced, zipf, or a file of"),
        ("1 1 1 1 1 1 1 nan", "cannot be read: 'nan' is negative or not finite"),
        ("1 1 1 1 1 1 1 1e999999999", "cannot be read: '1e999999999' is negative or not finite"),
        ("a b", "cannot be read: could not convert string to float: 'a'; valid: balanced, zipf"),
        ("1 " * 2**20, "cannot be read: it has 2097152 bytes, more than 1048576"),
        (None, "is no file; valid: balanced, zipf, or a file"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "load.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(BASE, router_load=str(file)).check()


def test_a_file_that_was_edited_is_another_cell(loads: dict[str, str]) -> None:
    run = replace(BASE, router_load=loads["file"], dry_run=True)
    before = rows.key(rows.identity(run))
    Path(loads["file"]).write_text("1 1 1 1 1 1 1 1")
    assert rows.key(rows.identity(run)) != before


def test_loads_that_are_refused() -> None:
    with pytest.raises(ValueError, match="router_load = zipf is for models with experts, and tiny"):
        replace(RUN, router_load="zipf").check()
    with pytest.raises(ValueError, match="router_load = zipf is for dry_run = true only"):
        checks.check(replace(BASE, router_load="zipf"))
