"""The spread of each row's step time: the whiskers of figures, and the mark of noisy rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd

from bench import rows
from bench.report.chart import Line

_INTERVALS = {
    "fastest to slowest round": ("round_ms_low", "round_ms_high"),
    "interval of the prediction": ("step_ms_low", "step_ms_high"),
    "20 % to 80 % of the steps": ("step_ms_p20", "step_ms_p80"),
}
"""Columns of the least and the greatest time, by their meaning; the first that a row has counts."""
NOISY = "rounds differ by 10 %, or other processes were busy"
"""Meaning of a noisy row."""
_MARK = {
    **{"color": "black", "marker": "o", "linestyle": "", "markersize": 11},
    "markerfacecolor": "none",
}


def with_spread(data: pd.DataFrame) -> pd.DataFrame:
    """Add the columns low_ms and high_ms (NaN if unknown), and `spread`, their meaning."""
    low, high = (pd.Series(np.nan, index=data.index) for _ in range(2))
    meaning = pd.Series("", index=data.index, dtype=object)
    for words, (least, greatest) in _INTERVALS.items():
        if not {least, greatest} <= {*data}:
            continue
        new = low.isna() & data[least].notna() & data[greatest].notna()
        low, high = low.mask(new, data[least]), high.mask(new, data[greatest])
        meaning = meaning.mask(new, words)
    return data.assign(low_ms=low, high_ms=high, spread=meaning)


def note(data: pd.DataFrame) -> str:
    """The sentence that says what whiskers mean; empty where no row has any."""
    words = [name for name in dict.fromkeys(data["spread"]) if name]
    return f"Whiskers: {' / '.join(words)}." if words else ""


def noisy(data: pd.DataFrame) -> pd.Series:
    """Whether each row is noisy; rows of versions that do not know are not."""
    if "noisy" not in data:
        return pd.Series(False, index=data.index)
    return data["noisy"].astype(str) == "True"


def places(data: pd.DataFrame) -> pd.Series:
    """Return each row's place by time, 1 the fastest, among the rows that differ from it in their
    method alone; empty without rounds. A row is behind those whose slowest round was faster than
    its own fastest one: rows whose rounds overlap share a place."""
    labels: dict[Hashable, str] = {}
    same = [name for name in (*rows.IDENTITY, "mode", "hardware") if name != "method"]
    for _, alike in data[data["round_ms_low"].notna()].groupby(same, dropna=False):
        for index, low in alike["round_ms_low"].items():
            labels[index] = str(1 + int((alike["round_ms_high"] < low).sum()))
    return pd.Series([labels.get(index, "") for index in data.index], data.index, dtype=object)


def noisy_marks(data: pd.DataFrame, x: Sequence[float], y: Sequence[float]) -> list[Line]:
    """A circle around the point of each noisy row; no mark if there is none."""
    points = [(a, b) for a, b, is_noisy in zip(x, y, noisy(data), strict=True) if is_noisy]
    if not points:
        return []
    xs, ys = zip(*points, strict=True)
    return [Line(label=f"noisy: {NOISY}", x=xs, y=ys, style=_MARK)]
