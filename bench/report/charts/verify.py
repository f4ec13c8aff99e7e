"""The figure of the correctness experiment: both trainings' losses, and their difference."""

from __future__ import annotations

from math import ceil, floor, log10

import pandas as pd

from bench.report.chart import Axis, Chart, Line, Panel
from bench.report.labels import RULE, few

_REFERENCE = {"color": "#E69F00", "linewidth": 5}
_SPLIT = {"color": "#0072B2", "linewidth": 1.5}
_DIFFERENCE = {"color": "black", "marker": ".", "linestyle": "", "markersize": 4}
_TOLERANCE = {**RULE, "color": "#D55E00", "linestyle": "--"}


def overlay(steps: pd.DataFrame, title: str, tolerance: float | None = None) -> Chart:
    """Loss and gradient norm of reference and candidate, with their difference on an axis below,
    where zero has a place of its own.

    Args:
        tolerance: The largest difference that passes; by default that in the column of this name,
            which files of earlier versions lack.
    """
    if tolerance is None and "tolerance" in steps and steps["tolerance"].notna().any():
        tolerance = float(steps["tolerance"].max())
    at = [*steps["step"]]
    above, below = [], []
    for name, label in (("loss", "loss (nats/token)"), ("grad_norm", "gradient norm")):
        both = [
            Line(label="reference", x=at, y=[*steps[f"{name}_reference"]], style=_REFERENCE),
            Line(label="sequence split", x=at, y=[*steps[name]], style=_SPLIT),
        ]
        above.append(Panel(x=Axis(label="step"), y=Axis(label=label), marks=both, height=1.2))
        of = f"relative difference\nof {label.partition(' (')[0]}"
        below.append(_differences(at, steps[f"{name}_difference"], of, tolerance))
    return Chart(panels=[*above, *below], source=title, origin="measured", columns=2, share_y=False)


def _differences(
    at: list[float], difference: pd.Series, label: str, tolerance: float | None
) -> Panel:
    """The panel of one quantity: logarithmic above the lowest power of ten, and zero below it."""
    positive = [value for value in difference if value > 0]
    sizes = [*positive, *filter(None, [tolerance])]
    low, high = (floor(log10(min(sizes))), ceil(log10(max(sizes)))) if sizes else (-1, 0)
    zero = 10.0 ** (low - 1)
    ticks = {zero: "0"} | {10.0**n: f"1e{n}" for n in few(range(low, high + 1), 6)}
    marks = [
        Line(
            label="difference",
            x=at,
            y=[zero if value == 0 else value for value in difference],
            style=_DIFFERENCE,
        )
    ]
    if tolerance:
        ends = [min(at), max(at)]
        marks.append(Line(label="tolerance", x=ends, y=[tolerance] * 2, style=_TOLERANCE))
    y = Axis(label=label, log=10, ticks=ticks, limits=(zero / 2, 10.0**high * 2))
    return Panel(x=Axis(label="step"), y=y, marks=marks, height=0.8)
