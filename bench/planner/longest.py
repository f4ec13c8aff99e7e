"""The longest sequence that fits on a profile's GPU and host, by dry runs.

Two shallow runs predict the memory at any depth (`bench/simulator/shallow.py`). Memory is piecewise
linear in the length, so secants find the limit; one dry run of all blocks confirms it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from bench.hardware import profile_file
from bench.simulator import dry_run, shallow
from bench.theory import memory as theory_memory
from odysseus.config.run import RunConfig

_CLOSE = 256
"""The search ends when what fits and what does not are nearer than one in so many."""


@dataclass(frozen=True)
class Need:
    """What a run takes of what there is, in bytes: on one GPU, and of one node's host."""

    gpu: int
    gpu_limit: int
    host: int
    host_limit: int

    @property
    def limit(self) -> str:
        """What is short; empty if it fits."""
        return "GPU" if self.gpu > self.gpu_limit else "host" if self.host > self.host_limit else ""

    @cached_property
    def share(self) -> float:
        """Of the scarcer of the two; above 1 it does not fit."""
        return max(self.gpu / self.gpu_limit, self.host / self.host_limit)


@dataclass(frozen=True)
class Longest:
    """The longest sequence that fits.

    Attributes:
        seq_len: 0 where none fits.
        limit: What is short of more: GPU or host.
        counted: The dry run of all blocks at that length; None where none fits.
    """

    seq_len: int
    limit: str
    counted: dry_run.Counted | None


def by_method(method: str, base: RunConfig) -> RunConfig:
    """The run by another method; what is ulysses's own stays with it."""
    chunks = base.ulysses_head_chunks if method == "ulysses" else 1
    return replace(base, method=method, ulysses_head_chunks=chunks)


def need_of(run: RunConfig, counted: dry_run.Counted) -> Need:
    """What a dry run has counted."""
    return need(run, counted.peak.bytes)


def predicted_need(run: RunConfig) -> Need:
    """By two shallow dry runs, where a model is deeper than those."""
    layers = run.architecture.num_hidden_layers
    if layers <= shallow.SHALLOW[1]:
        return need_of(run, dry_run.counted(run))
    few, more = (
        shallow.peak_by_place(dry_run.counted(shallow.with_blocks(run, blocks)).memory, blocks)
        for blocks in shallow.SHALLOW
    )
    return need(run, shallow.peak_at(layers, few, more))


def longest(run: RunConfig, tell: Callable[[int, Need], None]) -> Longest:
    """The longest sequence that fits, within 0.4 %: a multiple of 256 tokens a rank, as kernels
    like it.

    Args:
        tell: Called with every length that is tried and what it takes.
    """
    unit = 256 * run.seq_len_unit

    def tried(units: int) -> Need:
        found = predicted_need(replace(run, seq_len=units * unit))
        tell(units * unit, found)
        return found

    fits, fails = 0, 0  # in units; 0 fails is none known yet
    known: dict[int, Need] = {}
    trial = 1
    while not fails or fails - fits > max(1, fits // _CLOSE):
        known[trial] = tried(trial)
        if known[trial].limit:
            fails = trial
        else:
            fits = trial
        trial = _next_trial(fits, fails, known)
    while fits:
        whole = replace(run, seq_len=fits * unit)
        counted = dry_run.counted(whole)
        if not need_of(whole, counted).limit:
            return Longest(whole.seq_len, known[fails].limit, counted)
        fits -= max(1, fits // _CLOSE)
    return Longest(0, known[fails].limit, None)


def _next_trial(fits: int, fails: int, known: dict[int, Need]) -> int:
    """Where the line through the two nearest known points reaches the limit, within what is open;
    at most eight times as long as what is known to fit."""
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
        guess = fits + max(1, fits // _CLOSE)
    elif fails and guess >= fails:
        guess = fails - max(1, fits // _CLOSE)
    return max(fits + 1, min(guess, high))


def need(run: RunConfig, gpu: int) -> Need:
    """What a run takes whose heaviest rank has so many bytes on its GPU."""
    profile = profile_file.find(run.hardware)
    host = theory_memory.host_bytes(run) * profile.ranks_per_node(run.world_size)
    gpu_limit = dry_run.gpu_limit_bytes(run, profile)
    return Need(gpu, gpu_limit, host, dry_run.host_limit_bytes(run, profile))
