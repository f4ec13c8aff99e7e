"""Charts of the times of cells that differ only in layout, ranks and length.

Each function takes rows with numbers as numbers and a column `layout`. It returns a chart, or the
reason why these rows have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from bench.report import spread
from bench.report.chart import Axis, Chart, Line, Mark, Panel
from bench.report.labels import (
    layouts_of,
    length_label,
    lengths_ticks,
    ranks_label,
    source_of,
    style_of,
)

Left = str
"""The reason why there is no chart."""
_IDEAL = {"color": "0.6", "linestyle": "-", "linewidth": 0.8}
_GLOO = (
    "gloo sends a reduce-scatter as an all-reduce, which costs tp_sp, ulysses and odysseus time "
    "that NCCL does not take."
)
_CORES = r"\((\d+) cores\)$"
"""Pattern of the number of cores in the name of a processor."""


def throughput(data: pd.DataFrame) -> Chart | Left:
    """Tokens per second over sequence length, one panel per number of ranks."""
    return _over_lengths(_timed(data), "tokens_per_s", 1, "throughput (tokens/s)")


def mfu(data: pd.DataFrame) -> Chart | Left:
    """Model FLOPs utilization over sequence length, one panel per number of ranks. CPUs have none,
    as no data sheet has their peak."""
    on_gpu = data[data["device"] != "cpu"]
    if on_gpu.empty and len(data):
        return "no data sheet has a CPU's peak FLOP/s"
    return _over_lengths(_timed(on_gpu), "mfu", 100, "MFU (% of peak FLOP/s)")


def _over_lengths(data: pd.DataFrame, column: str, times: float, unit: str) -> Chart | Left:
    data = data[data[column].notna()]
    if data.empty:
        return f"no {column} in these rows"
    panels, highest = [], 1.08 * times * _highest(data, column)
    y = Axis(label=unit, limits=(0, highest))
    for ranks, rows in data.groupby("world_size"):
        marks = _lines(rows, "seq_len", column, times)
        x = Axis(label="sequence length (tokens)", log=2, ticks=lengths_ticks(rows["seq_len"]))
        panels.append(Panel(title=ranks_label(ranks), x=x, y=y, marks=marks))
    return Chart(panels=panels, source=source_of(data), note=note_of(data))


def strong_scaling(data: pd.DataFrame) -> Chart | Left:
    """Throughput over ranks at a constant number of tokens per step, one panel per length."""
    return _over_ranks(
        data,
        ["seq_len", "step_tokens"],
        "tokens_per_s",
        "throughput (tokens/s)",
        lambda values: f"{length_label(values[0])} tokens, {length_label(values[1])} per step",
        grows=True,
    )


def weak_scaling(data: pd.DataFrame) -> Chart | Left:
    """Throughput per rank over ranks at a constant number of tokens per rank, by longer or more
    samples."""
    return _over_ranks(
        data.assign(rank_tokens=data["step_tokens"] / data["world_size"]),
        ["rank_tokens"],
        "tokens_per_s_per_gpu",
        "throughput per rank (tokens/s)",
        lambda values: f"{length_label(values[0])} tokens per rank",
        grows=False,
    )


def _over_ranks(
    data: pd.DataFrame,
    same: list[str],
    column: str,
    unit: str,
    title: Callable[[Any], str],
    grows: bool,
) -> Chart | Left:
    """Draw a line per layout over ranks, with a panel for each set of equal values in the columns
    `same`. Rows whose ranks share the cores of a CPU are left out: adding ranks adds no processor.

    Args:
        grows: Whether `column` should grow with the ranks; then a line shows perfect scaling.
    """
    timed = _timed(data)
    shared = _share_cores(timed)
    every = _on_several_ranks(timed, same, column)
    data = _on_several_ranks(timed[~shared], same, column)
    if data.empty:
        if len(every):
            return "the ranks share the cores of a CPU"
        return f"no layout has the same {', '.join(same)} on several numbers of ranks"
    panels = []
    highest = 1.08 * _highest(data, column)
    for number, (values, rows) in enumerate(data.groupby(same)):
        if number == 6:
            break
        ranks = sorted(rows["world_size"].unique())
        marks = _lines(rows, "world_size", column)
        if grows:
            first = rows[rows["world_size"] == ranks[0]][column].max()
            ideal = [first * n / ranks[0] for n in ranks]
            marks.append(Line(label="in proportion to ranks", x=ranks, y=ideal, style=_IDEAL))
        x = Axis(label="ranks", log=2, ticks={float(n): f"{n:g}" for n in ranks})
        y = Axis(label=unit, limits=(0, highest))
        panels.append(Panel(title=title(values), x=x, y=y, marks=marks))
    left = "Rows whose ranks share the cores of a CPU are left out." if shared.any() else ""
    note = " ".join(filter(None, [note_of(data), left]))
    return Chart(panels=panels, source=source_of(data), note=note, columns=3)


def _on_several_ranks(data: pd.DataFrame, same: list[str], column: str) -> pd.DataFrame:
    """The rows of layouts that were timed on several numbers of ranks; longer samples before
    more."""
    data = data[data[column].notna()].sort_values("data_parallel_size")
    data = data.drop_duplicates([*same, "layout", "world_size"])
    spans = data.groupby([*same, "layout"])["world_size"].transform("nunique")
    return data[spans > 1].sort_values([*same, "world_size"])


def _share_cores(data: pd.DataFrame) -> pd.Series:
    """Whether each row was measured on a CPU with more ranks than cores."""
    cores = data["hardware"].astype(str).str.extract(_CORES, expand=False).astype(float)
    return (data["mode"] == "measured") & (data["device"] == "cpu") & (data["world_size"] > cores)


def _lines(rows: pd.DataFrame, over: str, column: str, times: float = 1) -> list[Mark]:
    """The line of each layout with its whiskers, and the marks of noisy rows."""
    lines: list[Mark] = []
    for name in layouts_of(rows):
        line = rows[rows["layout"] == name].sort_values(over)
        low, high = (times * end for end in _ends(line, column))
        spans = [*zip(low, high, strict=True)]
        x, y = [*line[over]], [*times * line[column]]
        lines.append(Line(label=name, x=x, y=y, style=style_of(name), spans=spans))
    return [*lines, *spread.noisy_marks(rows, [*rows[over]], [*times * rows[column]])]


def _ends(data: pd.DataFrame, column: str) -> tuple[pd.Series, pd.Series]:
    """Least and greatest value of a column that is inversely proportional to the step time."""
    per_ms = data[column] * data["step_ms_p50"]
    return per_ms / data["high_ms"], per_ms / data["low_ms"]


def _highest(data: pd.DataFrame, column: str) -> float:
    return max(data[column].max(), _ends(data, column)[1].fillna(0).max())


def note_of(data: pd.DataFrame) -> str:
    """The note below figures of time: the meaning of whiskers, and gloo's reduce-scatter."""
    gloo = _GLOO if "backend" in data and (data["backend"] == "gloo").any() else ""
    return " ".join(filter(None, [spread.note(data), gloo]))


def _timed(data: pd.DataFrame) -> pd.DataFrame:
    return spread.with_spread(data[data["status"] == "ok"])
