"""Dry runs of a plan: on all cores, each made once.

Two shallow runs predict the memory of a run of any depth (`bench/simulator/shallow.py`). Where only
memory is asked for, tiles that allocate the same as another are not computed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from threading import Lock
from typing import Any

from bench.pool import Here
from bench.simulator import dry_run, fit, predict, shallow
from bench.simulator.fake_world import few_tiles
from odysseus.config.run import RunConfig


@dataclass(frozen=True)
class Whole:
    """Dry run of all blocks.

    Attributes:
        columns: Columns of its row.
    """

    need: fit.Need
    columns: dict[str, Any]


class DryRuns:
    """Dry runs on an executor. Several threads may ask for them; each is made once.

    Args:
        executor: Where they are made; by default in this process.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self.executor = executor or Here()
        self._known: dict[tuple[Any, ...], Future[Any]] = {}
        self._lock = Lock()

    def need(self, run: RunConfig) -> fit.Need:
        """Predict a run's need from two shallow dry runs; count a model no deeper than those."""
        layers = run.architecture.num_hidden_layers
        if layers <= shallow.SHALLOW[1]:
            return self.whole(run).need
        few, more = [self._call(peaks, run, blocks) for blocks in shallow.SHALLOW]
        return fit.need(run, shallow.peak_at(layers, few.result(), more.result()))

    def whole(self, run: RunConfig, with_time: bool = False) -> Whole:
        """Count all blocks of a run.

        Args:
            with_time: Whether to predict the time of a step, if the profile has speeds.
        """
        return self._call(whole, run, with_time).result()

    def memory(self, run: RunConfig) -> Whole:
        """Count all blocks of a run, but neither traffic nor FLOPs nor most tiles."""
        return self._call(memory, run).result()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        with self._lock:
            key = (function, *arguments)
            if key not in self._known:
                self._known[key] = self.executor.submit(function, *arguments)
            return self._known[key]


def peaks(run: RunConfig, blocks: int) -> dict[str, int]:
    """Return the most bytes alive in each ZeRO unit of the run with this number of blocks."""
    with few_tiles():
        counted = dry_run.counted(shallow.with_blocks(run, blocks), only_memory=True)
    return shallow.peak_by_unit(counted.memory, blocks)


def memory(run: RunConfig) -> Whole:
    """Count the memory of all blocks of a run, see :meth:`DryRuns.memory`."""
    with few_tiles():
        counted = dry_run.counted(run, only_memory=True)
    return Whole(dry_run.need(run, counted), dry_run.columns_of_memory(run, counted))


def whole(run: RunConfig, with_time: bool) -> Whole:
    """Count all blocks of a run, see :meth:`DryRuns.whole`."""
    counted = predict.count(run) if with_time else dry_run.counted(run)
    return Whole(dry_run.need(run, counted), predict.columns(run, counted))
