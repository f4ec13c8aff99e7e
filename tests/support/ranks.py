"""Running a function on N gloo ranks, from a server process that has torch imported already."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.support.ranks_preload"])


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call function(*args) on every rank of a fresh gloo world; the results, by rank.

    Results must be plain Python values. The first rank that raises fails the call with its own
    traceback, and no process is left.
    """
    with tempfile.TemporaryDirectory() as folder:
        store, queue = os.path.join(folder, "store"), SERVER.SimpleQueue()
        processes = [
            SERVER.Process(target=_work, args=(function, rank, world_size, store, queue, args))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        results: dict[int, Any] = {}
        failure = None
        while len(results) < world_size and failure is None:
            rank, result, failure = queue.get()
            results[rank] = result
        for process in processes:
            if failure is not None:
                process.kill()
            process.join()
    if failure is not None:
        raise AssertionError(f"rank {rank} failed:\n{failure}")
    return [results[rank] for rank in range(world_size)]


def _work(
    function: Callable[..., Any], rank: int, world_size: int, store: str, queue: Any, args: tuple
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size
        )
        result = function(*args)
        dist.barrier()
        queue.put((rank, result, None))
        dist.destroy_process_group()
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
