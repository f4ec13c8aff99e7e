"""Print the memory savings that would make a run fit when no method fits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench import pool
from bench.commands.plan_row import GIB
from bench.commands.progress import bar, say
from bench.planner.dry_runs import DryRuns
from bench.planner.remedy import Remedy, more_gpus, remedy
from bench.planner.savings import in_words
from methods import label_of
from odysseus.config.run import RunConfig


def advise(runs: Sequence[RunConfig], dry_runs: DryRuns) -> None:
    """Print for each run the memory savings that make it fit; if none fits with any, the least
    memory that was reached, by what, and the number of GPUs on which it fits.

    Args:
        runs: One run per method.
    """
    say("nothing fits; trying what to add")
    with bar(len(runs), "method") as shown, pool.waiting(dry_runs.executor, len(runs)) as threads:
        remedies = []
        for tried in threads.map(partial(remedy, dry_runs=dry_runs), runs):
            remedies.append(tried)
            say(_line(tried))
            shown.update()
    fitting = [tried for tried in remedies if not tried.need.limit]
    if fitting:
        print("it fits with more memory savings, none of which can be left out:")
        print("\n".join(f"- {_line(tried)}" for tried in fitting))
        return
    least = min(remedies, key=lambda tried: tried.need.share)
    print("nothing fits, with all the memory savings that a plan tries; the nearest:")
    print(f"- {_line(least)}")
    wider = more_gpus(least.run, dry_runs)
    if wider is not None:
        print(
            f"- on {wider.world_size} GPUs it fits, with a sequence axis of {wider.sequence_size} "
            f"and a ring of {wider.ring_parallel_size}"
        )


def _line(tried: Remedy) -> str:
    need = tried.need
    outcome = "fits" if not need.limit else f"does not fit ({need.limit} memory is short)"
    memory = f"{need.gpu / GIB:.1f} of {need.gpu_limit / GIB:.1f} GiB on a GPU"
    if need.host:
        memory += f", {need.host / GIB:.0f} of {need.host_limit / GIB:.0f} on a host"
    added = in_words(tried.run, tried.added)
    return f"{label_of(tried.run.method)} {outcome} with {added}: {memory}"
