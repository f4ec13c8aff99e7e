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
from torch import Tensor

from bench.__main__ import main
from bench.config import checks
from bench.simulator import dry_run
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
    """zipf's first experts are those of rank 0; the file's fullest are those of the last rank."""
    base = replace(BASE, world_size=4, dry_run=True, seq_len=640)
    ranks = {name: dry_run.heaviest_rank(replace(base, router_load=loads[name])) for name in loads}
    assert ranks == {"balanced": 0, "zipf": 0, "file": 3}
    for axes in ({"sequence_parallel_size": 2}, {"ring_parallel_size": 2}):
        of_file = replace(base, router_load=loads["file"], expert_parallel_size=4, **axes)
        assert dry_run.heaviest_rank(of_file) == 3


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
        ("1 1 1 1 1 1 1 -1", "has other numbers, or only zeros; valid: balanced, zipf, or a file"),
        ("0 0 0 0 0 0 0 0", "has other numbers, or only zeros"),
        ("1 1 1 1 1 1 1 nan", "has other numbers, or only zeros"),
        ("a b", "cannot be read: could not convert string to float: 'a'; valid: balanced, zipf"),
        (None, "cannot be read: [Errno 2] No such file or directory"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "load.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        replace(BASE, router_load=str(file)).check()


def test_loads_that_are_refused() -> None:
    with pytest.raises(ValueError, match="router_load = zipf is for models with experts, and tiny"):
        replace(RUN, router_load="zipf").check()
    with pytest.raises(ValueError, match="router_load = zipf is for dry_run = true only"):
        checks.check(replace(BASE, router_load="zipf"))
