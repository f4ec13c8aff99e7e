"""What a cell leaves behind for the next one in the same process group."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from bench import cell
from odysseus.config import RunConfig
from tests.ranks import run_ranks


def groups_after_each(runs: list[RunConfig]) -> list[int]:
    """Process groups there are after each cell, and after dropping its own."""
    found = []
    for run in runs:
        assert cell.measure_in_group(run, torch.device("cpu"))["comm_bytes_total"] > 0
        found.append(len(dist.distributed_c10d._world.pg_map))
        cell.drop_groups()
        found.append(len(dist.distributed_c10d._world.pg_map))
    return found


def test_a_cell_after_another_finds_no_groups_of_it() -> None:
    run = RunConfig(world_size=2, seq_len=64, steps=1, warmup_steps=0)
    made, left, made_again, left_again = run_ranks(
        groups_after_each, 2, [run, replace(run, method="tp_sp")]
    )[0]
    assert made == made_again > 1
    assert left == left_again == 1
