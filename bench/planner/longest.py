"""The longest sequence that fits on a profile's GPU and host, by dry runs.

Two shallow runs predict the memory at any depth (`bench/simulator/shallow.py`). Memory is piecewise
linear in the length, so secants find the limit; one dry run of all blocks confirms it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.planner.dry_runs import DryRuns, Whole
from bench.simulator import fit
from odysseus.config.pairs import parts_of
from odysseus.config.parallelism import Parallelism
from odysseus.config.run import RunConfig

_PRECISION = 256
"""The search ends when the gap between a length that fits and one that does not is 1/256."""


@dataclass(frozen=True)
class Longest:
    """The longest sequence that fits.

    Attributes:
        seq_len: 0 where none fits.
        limit: The memory that a longer sequence lacks: GPU or host.
        whole: The dry run of all blocks at that length; None where none fits, or until it is
            confirmed.
    """

    seq_len: int
    limit: str
    whole: Whole | None


def by_method(method: str, base: RunConfig) -> RunConfig:
    """Return the run with another method, without the options that are for others: only ulysses
    keeps its chunks of heads, and MLP expert the ranks of its experts."""
    chunks = base.ulysses_head_chunks if method == "ulysses" else 1
    ranks = base.expert_parallel_size if parts_of(method).mlp == "expert" else 0
    return replace(base, method=method, ulysses_head_chunks=chunks, expert_parallel_size=ranks)


def unit_of(run: Parallelism) -> int:
    """Return what the search makes lengths multiples of: 256 tokens per rank, as kernels prefer."""
    return 256 * run.seq_len_unit


def longest(
    run: RunConfig,
    report: Callable[[int, fit.Need], None],
    dry_runs: DryRuns | None = None,
    start: int = 0,
) -> Longest:
    """Find the longest sequence that fits, see :func:`search`, and confirm it."""
    dry_runs = dry_runs or DryRuns()
    return confirmed(run, search(run, report, dry_runs, start), dry_runs.whole)


def search(
    run: RunConfig, report: Callable[[int, fit.Need], None], dry_runs: DryRuns, start: int = 0
) -> Longest:
    """Find the longest sequence that is predicted to fit, within 0.4 %, a multiple of
    :func:`unit_of`.

    Args:
        report: Called with every length that is tried and its need.
        start: The length in tokens that is tried first. The next is then what would fit if memory
            were proportional to the length, not eight times as long.
    """
    unit = unit_of(run)

    def try_length(units: int) -> fit.Need:
        need = dry_runs.need(replace(run, seq_len=units * unit))
        report(units * unit, need)
        return need

    fits, fails = 0, 0  # in units; fails = 0: no length that fails is known yet
    known: dict[int, fit.Need] = {}
    trial = max(1, start // unit)
    while not fails or fails - fits > max(1, fits // _PRECISION):
        known[trial] = try_length(trial)
        if known[trial].limit:
            fails = trial
        else:
            fits = trial
        if start and len(known) == 1:
            trial = max(fits + 1, int(trial / known[trial].share)) if fits else max(1, fails // 2)
        else:
            trial = _next_trial(fits, fails, known)
    return Longest(fits * unit, known[fails].limit, None)


def confirmed(run: RunConfig, candidate: Longest, count: Callable[[RunConfig], Whole]) -> Longest:
    """Return the longest sequence with a dry run of all blocks; a shorter one if that does not
    fit.

    Args:
        count: Makes that dry run.
    """
    unit = unit_of(run)
    fits = candidate.seq_len // unit
    while fits:
        whole = count(replace(run, seq_len=fits * unit))
        if not whole.need.limit:
            return Longest(fits * unit, candidate.limit, whole)
        fits -= max(1, fits // _PRECISION)
    return Longest(0, candidate.limit, None)


def _next_trial(fits: int, fails: int, known: dict[int, fit.Need]) -> int:
    """Return the next length to try, in units.

    The line through the two known points nearest to the limit gives the length at which it reaches
    the limit. The result is between the longest that fits and the shortest that fails, and at most
    eight times the former.
    """
    near = sorted(known, key=lambda units: abs(known[units].share - 1))[:2]
    high = fails - 1 if fails else 8 * fits
    if len(near) < 2:
        return max(fits + 1, high)
    (one, other), shares = near, [known[units].share for units in near]
    if shares[0] == shares[1]:
        return high
    crossing = one + (1 - shares[0]) * (other - one) / (shares[1] - shares[0])
    guess = int(crossing)
    if guess <= fits:  # the limit is close above
        guess = fits + max(1, fits // _PRECISION)
    elif fails and guess >= fails:
        guess = fails - max(1, fits // _PRECISION)
    return max(fits + 1, min(guess, high))
