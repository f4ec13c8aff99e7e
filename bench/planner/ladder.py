"""The ladder of a run: its longest sequence, then with the toggle that makes it longest, and so on.

A toggle is one of the memory savings in bench/planner/savings.py. The one that makes the sequence
longest is added, until none makes it longer; as long as nothing fits, the one that needs the least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from bench.planner import savings
from bench.planner.dry_runs import DryRuns
from bench.planner.longest import Longest, confirmed, search, unit_of
from bench.simulator import fit
from odysseus.config.run import RunConfig

_LEAST_GAIN = 0.01
"""A toggle gains if the sequence becomes longer by more than this fraction; the search for the
longest ends within 0.4 %."""
NONE = "none"
"""Name of the rung without a toggle."""


@dataclass(frozen=True)
class Rung:
    """A run with the toggles so far.

    Attributes:
        added: The toggle that this rung adds; :data:`NONE` for the first.
        so_far: All toggles added so far.
        run: The run with them, at its longest sequence.
        longest: Its longest sequence, whose dry run counts only memory.
        gain: How much longer it is than that of the rung before, as a fraction; None if nothing fit
            before.
    """

    added: str
    so_far: tuple[str, ...]
    run: RunConfig
    longest: Longest
    gain: float | None


def rungs(
    run: RunConfig, report: Callable[[int, fit.Need], None], dry_runs: DryRuns
) -> Iterator[Rung]:
    """Yield the rungs of a run, each as soon as it is known.

    Args:
        report: Called with every length that is tried and its need.
    """

    def need_at(run: RunConfig, length: int) -> fit.Need:
        need = dry_runs.need(replace(run, seq_len=length))
        report(length, need)
        return need

    longest, so_far = confirmed(run, search(run, report, dry_runs), dry_runs.memory), ()
    yield Rung(NONE, so_far, _at(run, longest.seq_len), longest, None)
    while True:
        before, best, added = longest.seq_len, longest, ""
        runs = {name: savings.with_savings(run, [name]) for name in savings.to_add(run)}
        shares = {n: need_at(r, _longer(r, before)).share for n, r in runs.items()}
        for name in sorted(shares, key=lambda n: shares[n]):  # that with the least need first
            start = _longer(runs[name], best.seq_len)
            if need_at(runs[name], start).limit:
                continue
            best, added = search(runs[name], report, dry_runs, start), name
        if not best.seq_len and shares:
            least = min(shares, key=lambda n: shares[n])
            added = least if shares[least] < need_at(run, unit_of(run)).share else ""
        if not added:
            return
        run, so_far = runs[added], (*so_far, added)
        longest = confirmed(run, best, dry_runs.memory)
        gain = longest.seq_len / before - 1 if before else None
        yield Rung(added, so_far, _at(run, longest.seq_len), longest, gain)


def _longer(run: RunConfig, length: int) -> int:
    """Return the shortest valid length that counts as a gain over a length in tokens."""
    unit = unit_of(run)
    return (int(length * (1 + _LEAST_GAIN)) // unit + 1) * unit


def _at(run: RunConfig, length: int) -> RunConfig:
    return replace(run, seq_len=length or run.seq_len)
