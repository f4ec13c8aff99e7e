"""Sequence lengths at which another method becomes the one that sends the fewest bytes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from bench.hardware import profile_file
from bench.planner.longest import by_method
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.run import RunConfig


def changes(run: RunConfig, low: float, high: float) -> list[float]:
    """Lengths in tokens between `low` and `high` at which the method that sends the fewest bytes
    changes, with the ranks of one node as the sequence axis.

    Raises:
        ValueError: a method cannot run on this number of ranks.
    """
    inside = profile_file.find(run.hardware).ranks_per_node(run.world_size)
    lines = {
        name: theory_traffic.line(replace(by_method(name, run), sequence_parallel_size=inside))
        for name in METHODS
    }

    def least(length: float) -> str:
        return min(lines, key=lambda name: lines[name][0] * int(length) + lines[name][1])

    lengths = np.geomspace(low, high, 400)
    return [float(b) for a, b in pairwise(lengths) if least(a) != least(b)]
