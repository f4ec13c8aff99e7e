"""Remedies for a run that does not fit: memory savings to add, found by dry runs, or more GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.config import checks
from bench.planner.dry_runs import DryRuns
from bench.planner.savings import to_add, with_savings
from bench.simulator import fit
from odysseus.config.run import RunConfig

_ON_HOST = ("activation_checkpoint_cpu_offload", "optimizer.offload", "parameter_offload")
_DOUBLINGS = 6
"""Most often that the number of GPUs is doubled."""


@dataclass(frozen=True)
class Remedy:
    """Savings added to a run.

    Attributes:
        added: Their names, in the order of their cost.
        run: The run with them.
        need: Its predicted need.
    """

    added: tuple[str, ...]
    run: RunConfig
    need: fit.Need


def remedy(run: RunConfig, dry_runs: DryRuns) -> Remedy:
    """Return the run with savings that make it fit and of which none can be left out; cheap ones
    are preferred. If no set makes it fit, return the one with the least need over its limit."""
    tried: list[Remedy] = []

    def tries(added: tuple[str, ...]) -> Remedy:
        changed = with_savings(run, added)
        tried.append(Remedy(added, changed, dry_runs.need(changed)))
        return tried[-1]

    for added in _sets(to_add(run)):
        least = tries(added)
        if least.need.limit:
            continue
        for name in reversed(added):
            fewer = tries(tuple(n for n in least.added if n != name))
            least = least if fewer.need.limit else fewer
        return least
    return min(tried, key=lambda one: one.need.share)


def _sets(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield more and more of the savings, then all but some of those that take host memory."""
    yield from (tuple(names[:count]) for count in range(len(names) + 1))
    on_host = [name for name in names if name in _ON_HOST]
    for left_out in (*([name] for name in on_host), on_host):
        yield tuple(name for name in names if name not in left_out)


def more_gpus(run: RunConfig, dry_runs: DryRuns) -> RunConfig | None:
    """Return the run with twice as many GPUs, or four, … times, on which it fits, its sample split
    over all of them; None if none was found."""
    wider = run
    for _ in range(_DOUBLINGS):
        doubled = _doubled(wider)
        if doubled is None or not dry_runs.need(doubled).limit:
            return doubled
        wider = doubled
    return None


def _doubled(run: RunConfig) -> RunConfig | None:
    """Return the run on twice as many GPUs: with a sequence axis of twice the size, or a ring."""
    ranks, sequence = 2 * run.world_size, run.sequence_size
    sizes = ((2 * sequence, run.ring_parallel_size), (sequence, 2 * run.ring_parallel_size))
    for sequence_size, ring in sizes:
        axes = {"sequence_parallel_size": sequence_size, "ring_parallel_size": ring}
        wider = replace(run, world_size=ranks, **axes)
        if not checks.refusal(wider):
            return wider
    return None
