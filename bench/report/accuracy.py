"""Compare predicted step times with measured ones, cell by cell, and the order of the methods."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from bench import rows
from bench.report import labels, spread

_CELL = ["world_size", "seq_len", "sequence_parallel_size", "ring_parallel_size", "method"]
SOURCES = "measured", "predicted"
"""The columns of times are named after these, with the suffix `_ms`."""
CLEARLY = 0.10
"""Relative difference of measured times above which a prediction must have the same order."""


def matched(measured: pd.DataFrame, predicted: pd.DataFrame, cluster: str) -> pd.DataFrame:
    """One row per cell: measured and predicted milliseconds, and predicted / measured - 1.

    Args:
        measured: Measured rows, numbers as numbers.
        predicted: Rows of the dry runs of the same cells.
        cluster: Name of the cluster, for the column of that name.

    Raises:
        ValueError: a cell is in only one of the two tables.
    """
    same = [column for column in rows.IDENTITY if column in measured and column in predicted]
    both = measured.merge(predicted, on=same, how="outer", suffixes=("_measured", "_predicted"))
    matches = both[[*_CELL, "step_ms_p50_measured", "step_ms_p50_predicted"]].copy()
    if matches.isna().any(axis=None):
        cell = matches[matches.isna().any(axis="columns")].iloc[0].to_dict()
        raise ValueError(
            f"cells of {cluster} are measured or predicted only, {cell} first; valid: the same ones"
        )
    matches.columns = [*_CELL, "measured_ms", "predicted_ms"]
    matches["error"] = matches["predicted_ms"] / matches["measured_ms"] - 1
    matches.insert(0, "cluster", cluster)
    matches["layout"] = [labels.layout(row) for row in matches.to_dict("records")]
    return matches


def matched_rows(data: pd.DataFrame) -> pd.DataFrame:
    """The times of the cells that are both measured and predicted, in the columns of
    :func:`matched`; the cluster is the profile and the hardware that was measured. The least and
    greatest error are those at both ends of the measured spread."""
    timed = spread.with_spread(data[(data["status"] == "ok") & data["step_ms_p50"].notna()])
    if "attention_kernel" in timed:  # on a GPU, the kernel that ran may be another
        ran = timed["attention_kernel"]
        known = ran.notna() & (ran != "")
        timed = timed.assign(attn_implementation=ran.where(known, timed["attn_implementation"]))
    # The layout names the method, except in a pure ring, whose rows may be of different ones.
    same = [*(name for name in rows.IDENTITY if name != "method"), "device", "layout"]
    both = timed[timed["mode"] == "measured"].merge(
        timed[timed["mode"] == "dry_run"], on=same, suffixes=("_measured", "_predicted")
    )
    both = both.copy()  # in one part: pandas warns of more than a hundred
    return both.assign(
        method=both["method_measured"],
        cluster=both["hardware_predicted"] + ", measured on " + both["hardware_measured"],
        measured_ms=both["step_ms_p50_measured"],
        predicted_ms=both["step_ms_p50_predicted"],
        error_min=both["step_ms_p50_predicted"] / both["high_ms_measured"] - 1,
        error_max=both["step_ms_p50_predicted"] / both["low_ms_measured"] - 1,
        noisy=both["noisy_measured"],
        spread=both["spread_measured"],
    )


def medians(rounds: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: over its rounds the medians of times and error, and the least and greatest
    error.

    The median of the errors need not be the error of the medians, because the speed of the machine
    changes between rounds.

    Args:
        rounds: Rows of :func:`matched` with a column `round`.
    """
    cells = rounds.groupby(["cluster", *_CELL, "layout"], sort=False)
    table = cells[["measured_ms", "predicted_ms", "error"]].median().reset_index()
    for name, statistic in (("error_min", "min"), ("error_max", "max"), ("rounds", "count")):
        table[name] = cells["error"].agg(statistic).to_numpy()
    return table


def misordered(rounds: pd.DataFrame) -> list[str]:
    """Pairs of layouts, on one cluster at one length, whose measured times clearly differ and whose
    predicted times have the opposite order.

    The difference is the median ratio of the two times over the rounds that have both.

    Args:
        rounds: Rows of :func:`matched` with a column `round`.
    """
    wrong = []
    for (cluster, length), cells in rounds.groupby(["cluster", "seq_len"], sort=False):
        measured, predicted = (
            cells.pivot(index="round", columns="layout", values=f"{source}_ms")
            for source in SOURCES
        )
        for one, other in combinations(measured, 2):
            measured_ratio, predicted_ratio = (
                np.log((ms[other] / ms[one]).median()) for ms in (measured, predicted)
            )
            clear = abs(measured_ratio) > np.log1p(CLEARLY)
            if clear and measured_ratio * predicted_ratio <= 0:
                fast, slow = (one, other) if measured_ratio > 0 else (other, one)
                wrong.append(f"{cluster}, {length} tokens: {fast} before {slow}")
    return wrong


def off_over_on(cells: pd.DataFrame) -> pd.Series:
    """Step time without ZeRO-3's prefetch divided by that with it, by method and length."""
    off = cells["zero_prefetch"].notna()  # a row has False if it is off, else nothing
    times = cells.assign(off=off).pivot(
        index=["method", "seq_len"], columns="off", values="step_ms_p50"
    )
    return times[True] / times[False]


def crossings(cells: pd.DataFrame, by_theory: Callable[[str, str], float]) -> pd.DataFrame:
    """Lengths in tokens at which the faster of two methods changes: measured, predicted, and where
    both send the same bytes in theory.

    Args:
        cells: Cells of one cluster.
        by_theory: Returns the length at which two methods send the same bytes.
    """
    changes = []
    plain = cells[cells["ring_parallel_size"] == 1]
    for one, other in combinations(labels.methods_of(plain), 2):
        measured, predicted = (
            _crossing(plain, one, other, column) for column in ("measured_ms", "predicted_ms")
        )
        if measured is not None:
            lengths = {"measured": measured, "predicted": predicted}
            same = {"bytes": by_theory(one, other)}
            changes.append({"methods": f"{one}, {other}"} | lengths | same)
    return pd.DataFrame(changes)


def _crossing(cells: pd.DataFrame, one: str, other: str, column: str) -> float | None:
    """The length at which the times of two methods cross, interpolated log-log; None if nowhere."""
    times = cells.pivot_table(index="seq_len", columns="method", values=column)
    ahead = np.log(times[one] / times[other])
    lengths = np.log(times.index.to_numpy(dtype=float))
    for (a, b), (x, y) in zip(pairwise(ahead), pairwise(lengths), strict=True):
        if a * b < 0:
            return float(np.exp(x + (y - x) * a / (a - b)))
    return None
