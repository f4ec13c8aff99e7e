"""The longest sequence that fits on a profile's GPU and host, by dry runs.

Two shallow runs predict the memory at any depth (`bench/simulator/shallow.py`). Memory is piecewise
linear in the length, so secants find the limit; one dry run of all blocks confirms it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.simulator import dry_run, fit, shallow
from methods import METHODS
from methods.from_file import is_file
from odysseus.config.run import RunConfig

_PRECISION = 256
"""The search ends when the gap between a length that fits and one that does not is 1/256."""


@dataclass(frozen=True)
class Longest:
    """The longest sequence that fits.

    Attributes:
        seq_len: 0 where none fits.
        limit: The memory that a longer sequence lacks: GPU or host.
        counted: The dry run of all blocks at that length; None where none fits.
    """

    seq_len: int
    limit: str
    counted: dry_run.Counted | None


def planned_methods(base: RunConfig) -> list[str]:
    """Return the methods that a plan compares: this project's, and the file that the run names."""
    return [*METHODS, *([base.method] if is_file(base.method) else [])]


def by_method(method: str, base: RunConfig) -> RunConfig:
    """Return the run with another method; only ulysses keeps its chunks of heads."""
    chunks = base.ulysses_head_chunks if method == "ulysses" else 1
    return replace(base, method=method, ulysses_head_chunks=chunks)


def predicted_need(run: RunConfig) -> fit.Need:
    """Predict a run's need from two shallow dry runs; a model no deeper than those is counted."""
    layers = run.architecture.num_hidden_layers
    if layers <= shallow.SHALLOW[1]:
        return dry_run.need(run, dry_run.counted(run))
    few, more = (
        shallow.peak_by_unit(dry_run.counted(shallow.with_blocks(run, blocks)).memory, blocks)
        for blocks in shallow.SHALLOW
    )
    return fit.need(run, shallow.peak_at(layers, few, more))


def longest(run: RunConfig, report: Callable[[int, fit.Need], None]) -> Longest:
    """Find the longest sequence that fits, within 0.4 %: a multiple of 256 tokens per rank, as
    kernels prefer.

    Args:
        report: Called with every length that is tried and its need.
    """
    unit = 256 * run.seq_len_unit

    def try_length(units: int) -> fit.Need:
        need = predicted_need(replace(run, seq_len=units * unit))
        report(units * unit, need)
        return need

    fits, fails = 0, 0  # in units; fails = 0: no length that fails is known yet
    known: dict[int, fit.Need] = {}
    trial = 1
    while not fails or fails - fits > max(1, fits // _PRECISION):
        known[trial] = try_length(trial)
        if known[trial].limit:
            fails = trial
        else:
            fits = trial
        trial = _next_trial(fits, fails, known)
    while fits:
        candidate = replace(run, seq_len=fits * unit)
        counted = dry_run.counted(candidate)
        if not dry_run.need(candidate, counted).limit:
            return Longest(candidate.seq_len, known[fails].limit, counted)
        fits -= max(1, fits // _PRECISION)
    return Longest(0, known[fails].limit, None)


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
