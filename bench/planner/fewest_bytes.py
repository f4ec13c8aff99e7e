"""The method that sends the fewest bytes, and the lengths at which it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from bench.config import checks
from bench.hardware import profile_file
from bench.planner.longest import by_method
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.pairs import parts_of
from odysseus.config.run import RunConfig
from odysseus.config.vocabulary import CHOICES


def stretches(
    run: RunConfig, low: float, high: float, methods: Sequence[str] = tuple(METHODS)
) -> list[tuple[float, str]]:
    """The method that sends the fewest bytes, from each of these lengths in tokens to the next.

    The first length is `low`, the last stretch ends at `high`; there are none if no method can run.
    The ranks of one node are the sequence axis. With ``vocab_parallel = auto`` each method has, at
    each length, the cut of the vocabulary with which it sends the fewest.

    Args:
        methods: The methods that are compared; peers, and those that cannot run, are left out.
    """
    inside = profile_file.find(run.hardware).ranks_per_node(run.world_size)
    cuts = CHOICES.values() if run.vocab_parallel == "auto" else (run.vocab_parallel,)
    lines = {}
    for name in filter(lambda name: any(parts_of(name)), methods):
        for cut in cuts:
            one = by_method(name, replace(run, vocab_parallel=cut, sequence_parallel_size=inside))
            if not checks.refusal(replace(one, seq_len=one.seq_len_unit)):
                lines[f"{name} {cut}"] = theory_traffic.line(one)
    borders = theory_traffic.lowest(lines, low, high) if lines else []
    by_name = groupby(borders, lambda border: border[1].split()[0])
    return [(next(same)[0], name) for name, same in by_name]
