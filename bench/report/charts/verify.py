"""The figure of the correctness experiment: both trainings' losses, and their difference."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from bench.report.chart import Axis, Chart, Line, Panel

_REFERENCE = {"color": "#E69F00", "linewidth": 5}
_SPLIT = {"color": "#0072B2", "linewidth": 1.5}
_DIFFERENCE = {"color": "black", "marker": ".", "linestyle": "", "markersize": 4}


def overlay(steps: pd.DataFrame, title: str) -> Chart:
    """Loss and gradient norm of reference and candidate, with their difference on an axis below."""
    at = [*steps["step"]]
    above, below = [], []
    for name, label in (("loss", "loss (nats/token)"), ("grad_norm", "gradient norm")):
        both = [
            Line(label="reference", x=at, y=[*steps[f"{name}_reference"]], style=_REFERENCE),
            Line(label="sequence split", x=at, y=[*steps[name]], style=_SPLIT),
        ]
        above.append(Panel(x=Axis(label="step"), y=Axis(label=label), marks=both, height=1.2))
        difference = steps[f"{name}_difference"]
        points = [
            Line(label="difference", x=at, y=[*difference.where(difference > 0)], style=_DIFFERENCE)
        ]
        y = Axis(label=f"relative difference\nof {label.partition(' (')[0]}")
        if (difference > 0).any():  # a logarithmic axis cannot show zeros alone
            y = replace(y, log=10)
        below.append(Panel(x=Axis(label="step"), y=y, marks=points, height=0.8))
    return Chart(panels=[*above, *below], source=title, columns=2, share_y=False)
