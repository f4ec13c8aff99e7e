"""Ranks that tests share: results by rank, a failing rank's traceback, another world after it."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.support.ranks import MOST_CALLS, run_ranks


def process_and_sum() -> tuple[int, int, float]:
    """This rank's process, the sum of all ranks and the first random number."""
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    return os.getpid(), int(total), torch.rand(1).item()


def fail_on_rank_one(how: str) -> None:
    if dist.get_rank() != 1:
        time.sleep(600)
    if how == "dies":
        os._exit(3)
    raise ValueError("this rank is wrong")


def test_calls_share_their_processes_and_start_alike() -> None:
    first, second = run_ranks(process_and_sum, 3), run_ranks(process_and_sum, 3)
    assert first == second
    assert len({pid for pid, *_ in first}) == 3
    assert {total for _, total, _ in first} == {3}
    assert len({number for *_, number in first}) == 1


def test_fresh_ranks_are_new_processes() -> None:
    shared = run_ranks(process_and_sum, 2)
    fresh = run_ranks(process_and_sum, 2, fresh=True)
    assert not {pid for pid, *_ in fresh} & {pid for pid, *_ in shared}
    assert run_ranks(process_and_sum, 2) == shared


@pytest.mark.parametrize("how", ["raises", "dies"])
def test_a_failing_rank_fails_the_call_and_ends_its_world(how: str) -> None:
    before = run_ranks(process_and_sum, 2)
    told = "this rank is wrong" if how == "raises" else "the process ended"
    with pytest.raises(AssertionError, match=rf"rank 1 failed:[\s\S]*{told}"):
        run_ranks(fail_on_rank_one, 2, how)
    after = run_ranks(process_and_sum, 2)
    assert [total for _, total, _ in after] == [1, 1]
    assert not {pid for pid, *_ in before} & {pid for pid, *_ in after}
    for pid, *_ in before:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_world_is_replaced_after_many_calls() -> None:
    processes = {run_ranks(process_and_sum, 1)[0][0] for _ in range(MOST_CALLS + 1)}
    assert len(processes) == 2
