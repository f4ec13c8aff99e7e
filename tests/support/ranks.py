"""Functions run on N gloo ranks, in processes that a file's tests share.

Ranks are forked from a server process that has imported torch already. A world of ranks stays for
the next call, because starting it and its first step cost more than most tests.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.support.ranks_preload"])

MOST_CALLS = 20
"""Calls after which a world is replaced: the process groups that calls made stay until then."""


class World:
    """Ranks of one gloo world, each waiting for the next function."""

    def __init__(self, world_size: int) -> None:
        self.folder = tempfile.mkdtemp()
        self.connections: list[Connection] = []
        self.processes = []
        self.calls = 0
        store = os.path.join(self.folder, "store")
        for rank in range(world_size):
            connection, rank_end = SERVER.Pipe()
            process = SERVER.Process(target=_serve, args=(rank, world_size, store, rank_end))
            process.start()
            rank_end.close()
            self.connections.append(connection)
            self.processes.append(process)

    def call(self, function: Callable[..., Any], args: tuple) -> list[Any]:
        """The function's results by rank.

        Raises:
            AssertionError: A rank raised or died; the message holds its traceback.
        """
        self.calls += 1
        ranks = {connection: rank for rank, connection in enumerate(self.connections)}
        for connection in ranks:
            connection.send((function, args))
        results: dict[int, Any] = {}
        while len(results) < len(self.connections):
            for connection in wait([c for c, rank in ranks.items() if rank not in results]):
                assert isinstance(connection, Connection)
                rank = ranks[connection]
                try:
                    results[rank], failure = connection.recv()
                except EOFError:
                    failure = "the process ended"
                if failure is not None:
                    raise AssertionError(f"rank {rank} failed:\n{failure}")
        return [results[rank] for rank in range(len(results))]

    def close(self) -> None:
        """End every process, whatever it is doing."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
            process.close()
        for connection in self.connections:
            connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)


_WORLDS: dict[int, World] = {}


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, fresh: bool = False
) -> list[Any]:
    """Call function(*args) on every rank of a gloo world; return the results by rank.

    Results must be plain Python values. The first rank that raises fails the call with its own
    traceback; its world is ended and the next call starts another.

    Args:
        fresh: Start new processes and end them afterwards: for functions that depend on what a
            process has done before (imports, compiled code, peak memory) or that change it.
    """
    if fresh:
        world = World(world_size)
        try:
            return world.call(function, args)
        finally:
            world.close()
    world = _WORLDS.get(world_size) or World(world_size)
    _WORLDS[world_size] = world
    usable = False
    try:
        results = world.call(function, args)
        usable = world.calls < MOST_CALLS
    finally:
        if not usable:
            del _WORLDS[world_size]
            world.close()
    return results


def close_worlds() -> None:
    """End the ranks that earlier calls left."""
    while _WORLDS:
        _WORLDS.popitem()[1].close()


def _serve(rank: int, world_size: int, store: str, connection: Connection) -> None:
    import torch
    import torch.distributed as dist

    os.environ["LOCAL_RANK"] = str(rank)
    try:
        dist.init_process_group(
            "gloo", store=dist.FileStore(store, world_size), rank=rank, world_size=world_size
        )
        seed = torch.initial_seed()
        while True:
            function, args = connection.recv()
            torch.set_num_threads(1)
            torch.manual_seed(seed)
            result = function(*args)
            dist.barrier()
            gc.collect()
            connection.send((result, None))
    except EOFError:  # the test process has ended
        return
    except BaseException:
        connection.send((None, traceback.format_exc()))
