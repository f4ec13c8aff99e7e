"""Errors of predictions against published values: quantiles by group, the order of runs, and the
intervals that the errors make."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pandas as pd

from bench.simulator import interval

LENGTHS = (8192, 65536, 524288)
"""Bounds of the groups of tokens per sample."""


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row for all predictions and one for each group of them.

    Columns: the group, its number of rows, the median absolute error, the mean error (bias), the
    quantiles 10 % and 90 % of the error, and Spearman's rank correlation of tokens/s/GPU (empty for
    fewer than ten rows).

    Args:
        table: Rows of ``bench validate``, numbers as numbers.
    """
    return pd.DataFrame([_line(name, group) for name, group in _groups(table)])


def intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Return the quantiles 10 % and 90 % of published by predicted steps, by kind of run.

    Columns: the kind of :func:`bench.simulator.interval.kind`, the number of its rows, low and high
    of :data:`bench.simulator.interval.FACTORS`.

    Args:
        table: Rows of ``bench validate``, numbers as numbers.
    """
    kinds = kinds_of(table)
    lines = []
    for kind, of_kind in (table["published_s"] / table["predicted_s"]).groupby(kinds):
        low, high = of_kind.quantile([0.1, 0.9])
        lines.append({"kind": kind, "rows": len(of_kind), "low": low, "high": high})
    return pd.DataFrame(lines)


def kinds_of(table: pd.DataFrame) -> pd.Series:
    """Return the kind of each row's run."""
    micro_steps = table["settings"].str.extract(r"--gradient_accumulation_steps (\d+)")[0]
    tokens = table["tokens_per_gpu"] / micro_steps.fillna("1").astype(int)
    nodes = -(-table["gpus"] // interval.GPUS_PER_NODE)
    kinds = [interval.kind(*of) for of in zip(nodes, tokens, strict=True)]
    return pd.Series(kinds, index=table.index)


def _groups(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "all", table
    for column in ("gpu", "source"):
        if table[column].nunique() > 1:
            for name, group in table.groupby(column, sort=False):
                yield str(name), group
    edges = [0, *LENGTHS, 2**62]
    for low, high in pairwise(edges):
        group = table[(table["seq_len"] > low) & (table["seq_len"] <= high)]
        if 0 < len(group) < len(table):
            name = f"over {low:,} tokens" if high == edges[-1] else f"up to {high:,} tokens"
            yield name, group


def _line(name: str, group: pd.DataFrame) -> dict[str, str]:
    error = group["error"]
    published, predicted = (
        (group["tokens_per_gpu"] / group[seconds]).rank()
        for seconds in ("published_s", "predicted_s")
    )
    order = published.corr(predicted)
    return {
        "rows": name,
        "number": str(len(group)),
        "median off": f"{error.abs().median():.1%}",
        "bias": f"{error.mean():+.1%}",
        "10 %": f"{error.quantile(0.1):+.1%}",
        "90 %": f"{error.quantile(0.9):+.1%}",
        "Spearman": f"{order:.3f}" if len(group) >= 10 else "",
    }
