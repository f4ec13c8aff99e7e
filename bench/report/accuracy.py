"""Predicted step times held against measured ones, cell by cell, and the order of methods."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np
import pandas as pd

from bench import rows
from bench.report import labels

_CELL = ["world_size", "seq_len", "sequence_parallel_size", "ring_parallel_size", "method"]
HOW = "measured", "predicted"
"""Columns of times are these and `_ms`."""
CLEARLY = 0.10
"""A difference of measured times from which on a prediction must have the same order."""


def matched(measured: pd.DataFrame, predicted: pd.DataFrame, cluster: str) -> pd.DataFrame:
    """One row a cell that has both: its times in ms and the error, predicted / measured - 1.

    Args:
        measured: Rows of cells, numbers as numbers; `predicted` those of their dry runs.
        cluster: What both ran on, for the column of that name.

    Raises:
        ValueError: a cell is in one of the two only.
    """
    same = [column for column in rows.IDENTITY if column in measured and column in predicted]
    both = measured.merge(predicted, on=same, how="outer", suffixes=("_measured", "_predicted"))
    found = both[[*_CELL, "step_ms_p50_measured", "step_ms_p50_predicted"]].copy()
    if found.isna().any(axis=None):
        cell = found[found.isna().any(axis="columns")].iloc[0].to_dict()
        raise ValueError(
            f"cells of {cluster} are measured or predicted only, {cell} first; valid: the same ones"
        )
    found.columns = [*_CELL, "measured_ms", "predicted_ms"]
    found["error"] = found["predicted_ms"] / found["measured_ms"] - 1
    found.insert(0, "cluster", cluster)
    found["layout"] = [labels.layout(row) for row in found.to_dict("records")]
    return found


def of_rows(data: pd.DataFrame) -> pd.DataFrame:
    """As :func:`matched`, of those cells among rows that are both measured and predicted; the
    cluster says by which profile and on what."""
    timed = data[(data["status"] == "ok") & data["step_ms_p50"].notna()]
    same = [*rows.IDENTITY, "device", "layout"]
    both = timed[timed["mode"] == "measured"].merge(
        timed[timed["mode"] == "dry_run"], on=same, suffixes=("_measured", "_predicted")
    )
    return both.assign(
        cluster=both["hardware_predicted"] + ", measured on " + both["hardware_measured"],
        measured_ms=both["step_ms_p50_measured"],
        predicted_ms=both["step_ms_p50_predicted"],
    )


def medians(rounds: pd.DataFrame) -> pd.DataFrame:
    """Each cell over its rounds: the medians of its times and of each round's error, which need not
    be the error of the medians, as the pace of a machine changes; the least and greatest error.

    Args:
        rounds: Rows as :func:`matched` has them, and the round in a column of that name.
    """
    cells = rounds.groupby(["cluster", *_CELL, "layout"], sort=False)
    found = cells[["measured_ms", "predicted_ms", "error"]].median().reset_index()
    for name, of in (("error_min", "min"), ("error_max", "max"), ("rounds", "count")):
        found[name] = cells["error"].agg(of).to_numpy()
    return found


def misordered(rounds: pd.DataFrame) -> list[str]:
    """Pairs of layouts on one cluster at one length that clearly differ, and are predicted the
    other way round: by the median, over rounds that have both, of what one takes over the other.

    Args:
        rounds: As of :func:`medians`.
    """
    wrong = []
    for (cluster, length), cells in rounds.groupby(["cluster", "seq_len"], sort=False):
        measured, predicted = (
            cells.pivot(index="round", columns="layout", values=f"{how}_ms") for how in HOW
        )
        for one, other in combinations(measured, 2):
            in_fact, foretold = (
                np.log((ms[other] / ms[one]).median()) for ms in (measured, predicted)
            )
            if abs(in_fact) > np.log1p(CLEARLY) and in_fact * foretold <= 0:
                fast, slow = (one, other) if in_fact > 0 else (other, one)
                wrong.append(f"{cluster}, {length} tokens: {fast} before {slow}")
    return wrong


def off_over_on(cells: pd.DataFrame) -> pd.Series:
    """Step times without ZeRO-3's prefetch over those with it, by method and length."""
    off = cells["zero_prefetch"].notna()  # a row says False, or nothing
    times = cells.assign(off=off).pivot(
        index=["method", "seq_len"], columns="off", values="step_ms_p50"
    )
    return times[True] / times[False]


def crossings(found: pd.DataFrame, by_theory: Callable[[str, str], float]) -> pd.DataFrame:
    """Lengths at which two methods change places: as measured, as predicted, and where theory has
    them send the same bytes.

    Args:
        found: Cells of one cluster.
        by_theory: The length of two methods at which their bytes are the same.
    """
    changes = []
    plain = found[found["ring_parallel_size"] == 1]
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
    """Where the times of two methods cross, by power laws between lengths."""
    times = cells.pivot_table(index="seq_len", columns="method", values=column)
    ahead = np.log(times[one] / times[other])
    lengths = np.log(times.index.to_numpy(dtype=float))
    for (a, b), (x, y) in zip(pairwise(ahead), pairwise(lengths), strict=True):
        if a * b < 0:
            return float(np.exp(x + (y - x) * a / (a - b)))
    return None
