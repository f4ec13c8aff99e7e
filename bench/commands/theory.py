"""``python -m bench theory``: bytes that each method sends, published, derived and measured, and
the peak of its activations.

The derived bytes are closed forms of any model on any number of ranks: nothing is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pandas as pd

from bench.config import checks, grid
from bench.planner.longest import by_method
from bench.runner import launch
from bench.theory import memory as theory_memory
from bench.theory import published
from bench.theory import traffic as theory_traffic
from methods import METHODS, method_of
from odysseus.config.pairs import every_pair
from odysseus.config.run import RunConfig
from odysseus.config.sizes import divisors

_COLUMNS = ("activation", "parameter", "gradient", "edge", "total")


def main(parsed: Any) -> int:
    """Print the tables; return 1 if a measured byte count differs from the formula, else 0.

    Raises:
        ValueError: no method can run the configuration, or one cannot be measured here.
    """
    asked = grid.run_config(parsed)
    base = _with_axis(asked)
    refusals = {name: _refusal(by_method(name, base)) for name in METHODS}
    runs = [by_method(name, base) for name, reason in refusals.items() if not reason]
    if not runs:
        raise ValueError(_refusal(asked) or next(iter(refusals.values())))
    for run in runs if parsed.measure else ():
        checks.check(run)
        checks.check_gpus(run, None)

    _title("As published: Odysseus README, first version")
    _print(published.ODYSSEUS_FIRST)
    _title("As published: Odysseus README, June 2024")
    _print(published.ODYSSEUS_2024)
    _title("As derived, in elements x (N-1)/N per block")
    _print(published.DERIVED)
    _title("Added by a ring of R ranks, in elements x (R-1)/R per block; L above becomes L/R")
    _print(published.DERIVED_RING)
    _title("Where the published tables are wrong")
    print(published.FINDINGS)
    _title(f"As derived, bytes per rank and step: {describe(base)}")
    derived = pd.DataFrame([_derived(run) for run in runs])
    _print(_with_peaks(derived, runs))
    if base != asked:
        print(
            f"\nsequence_parallel_size = {base.sequence_size}: the most of the "
            f"{base.world_size} ranks that a method can be cut over"
        )
    for name, reason in refusals.items():
        if reason:
            print(f"\n{name} is left out: {reason}")
    _title("Sequence length from which one method sends less than another, all else as above")
    print("\n".join(crossovers(base, [run.method for run in runs])))
    _print_pairs(base)
    return _measure(runs, derived) if parsed.measure else 0


def _print_pairs(base: RunConfig) -> None:
    """Print the bytes of every pair that is none of the four, and which pair sends least."""
    able = [run for name in every_pair() if not _refusal(run := by_method(name, base))]
    if unnamed := [run for run in able if run.method not in METHODS]:
        _title("The same of the other pairs of an attention and an MLP (ATTENTION+MLP)")
        _print(_with_peaks(pd.DataFrame([_derived(run) for run in unnamed]), unnamed))
    _title("The pair that sends least, by sequence length, all else as above")
    lines = {run.method: theory_traffic.line(run) for run in able}
    for length, name in theory_traffic.lowest(lines, base.seq_len_unit):
        print(f"- from L = {math.ceil(length)} on: {name}")


def describe(run: RunConfig) -> str:
    """Return the sizes that determine the traffic, as text."""
    load = f", rank 0 of {run.router_load} load" if run.has_unequal_experts else ""
    tensor = f" x TP {run.tensor_parallel_size}" if run.tensor_parallel_size > 1 else ""
    return (
        f"{run.model.label}, L = {run.seq_len}, DP {run.data_parallel_size} x "
        f"ring {run.ring_parallel_size} x SP {run.sequence_size}{tensor}, "
        f"micro batch {run.micro_batch_size}, {run.dtype}{load}"
    )


def crossovers(base: RunConfig, methods: Sequence[str] = tuple(METHODS)) -> list[str]:
    """Return lines with the L at which two methods send the same; bytes are linear in L."""
    lines = {name: theory_traffic.line(by_method(name, base)) for name in methods}
    texts = []
    for one, other in combinations(methods, 2):
        (slope, fixed), (other_slope, other_fixed) = lines[one], lines[other]
        if slope == other_slope:
            less, more = (one, other) if fixed < other_fixed else (other, one)
            same = fixed == other_fixed
            texts.append(
                f"- {one} and {other} send the same"
                if same
                else f"- {less} sends less than {more} at any length"
            )
            continue
        crossing = theory_traffic.crossing(lines[one], lines[other])
        long, short = (one, other) if slope < other_slope else (other, one)
        if crossing <= 0:
            texts.append(f"- {long} sends less than {short} at any length")
        else:
            texts.append(
                f"- {long} sends less than {short} from L = {int(crossing) + 1} on, {short} below"
            )
    return texts


def _with_axis(base: RunConfig) -> RunConfig:
    """Return the run with the longest sequence axis that a method can be cut over, the other ranks
    being replicas; the run itself if it sets this axis or can take all ranks."""
    if base.sequence_parallel_size or _any_runs(base):
        return base
    _, *between = divisors(base.world_size // base.ring_parallel_size or 1)
    shorter = (replace(base, sequence_parallel_size=size) for size in reversed(between))
    return next(filter(_any_runs, shorter), base)


def _any_runs(run: RunConfig) -> bool:
    return not all(_refusal(by_method(name, run)) for name in METHODS)


def _refusal(run: RunConfig) -> str:
    """Return the reason why the run's method cannot be cut like this; empty if it can."""
    try:
        run.check()
        method_of(run.method).check(run)
    except ValueError as error:
        return str(error)
    return ""


def _derived(run: RunConfig) -> dict[str, str | int]:
    columns = theory_traffic.step_traffic(run).columns
    return {"method": run.method} | {c: columns[f"comm_bytes_{c}"] for c in _COLUMNS}


def _with_peaks(derived: pd.DataFrame, runs: list[RunConfig]) -> pd.DataFrame:
    """Return the table with the peak of each run's activations."""
    peaks = [theory_memory.peak_activation_bytes(run) for run in runs]
    return derived.assign(
        **{"peak_activation_bytes": ["no form" if p is None else p for p in peaks]}
    )


def _measure(runs: list[RunConfig], derived: pd.DataFrame) -> int:
    rows = [launch.run_cell(run) for run in runs]
    _title(
        "As measured, bytes per rank and step, on " + str(rows[0].get("hardware", "this machine"))
    )
    failed = [row for row in rows if row["status"] != "ok"]
    if failed:
        print(f"{failed[0]['method']}: {failed[0]['status']}: {failed[0]['error']}")
        return 1
    counted = pd.DataFrame(
        [{"method": r["method"]} | {c: r[f"comm_bytes_{c}"] for c in _COLUMNS} for r in rows]
    )
    _print(counted)
    equal = counted.equals(derived)
    print("measured = derived, to the byte" if equal else "MEASURED AND DERIVED DIFFER")
    return 0 if equal else 1


def _title(text: str) -> None:
    print(f"\n{text}\n")


def _print(table: pd.DataFrame) -> None:
    print(table.to_string(index=False, justify="left"))
