"""The method that sends the fewest bytes, and the lengths at which it changes."""

from __future__ import annotations

from dataclasses import replace

from bench.hardware import profile_file
from bench.planner.longest import by_method
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.run import RunConfig


def stretches(run: RunConfig, low: float, high: float) -> list[tuple[float, str]]:
    """The method that sends the fewest bytes, from each of these lengths in tokens to the next.

    The first length is `low`, the last stretch ends at `high`. The ranks of one node are the
    sequence axis.

    Raises:
        ValueError: a method cannot run on this number of ranks.
    """
    inside = profile_file.find(run.hardware).ranks_per_node(run.world_size)
    lines = {
        name: theory_traffic.line(replace(by_method(name, run), sequence_parallel_size=inside))
        for name in METHODS
    }

    return theory_traffic.lowest(lines, low, high)
