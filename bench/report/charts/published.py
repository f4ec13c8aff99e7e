"""Chart of predicted step times against published ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.report.chart import Axis, Chart, Line, Panel

NUMBERS = {"gpus", "published_s", "predicted_s", "error"}
"""The columns of numbers that the chart needs."""
_DIAGONAL = {"color": "0.6", "linestyle": "-", "linewidth": 0.8}
_COLORS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black"
_MARKERS = "os^DvPX"


def scatter(predictions: pd.DataFrame) -> Chart | str:
    """Predicted over published seconds of each row, and beside it the errors by number of GPUs.

    Args:
        predictions: Rows of ``bench validate``, numbers as numbers.

    Returns:
        The chart, or why there is none.
    """
    for name in NUMBERS:
        sound = np.isfinite(predictions[name])
        predictions = predictions[sound & ((predictions[name] > 0) | (name == "error"))]
    if predictions.empty:
        return "no row of validate"
    published = predictions["published_s"]
    ends = [published.min() * 0.7, published.max() * 1.4]
    most = predictions["gpus"].max() * 1.5
    times = [Line(label="as published", x=ends, y=ends, style=_DIAGONAL)]
    errors = [Line(label="as published", x=[0.7, most], y=[0, 0], style=_DIAGONAL)]
    by_source = [*predictions.groupby("source")]
    by_source.sort(key=lambda group: -len(group[1]))  # few points lie above many
    for number, (source, rows) in enumerate(by_source):
        at = number % len(_MARKERS)
        style = {"color": _COLORS[at], "marker": _MARKERS[at], "linestyle": "", "markersize": 4}
        label, gpus = str(source), [*rows["gpus"]]
        x, y = [*rows["published_s"]], [*rows["predicted_s"]]
        times.append(Line(label=label, x=x, y=y, style=style))
        errors.append(Line(label=label, x=gpus, y=[*100 * rows["error"]], style=style))
    panels = [
        Panel(
            x=Axis(label="published step (s)", log=10),
            y=Axis(label="predicted step (s)", log=10),
            marks=times,
            width=1.3,
            height=1.3,
        ),
        Panel(
            x=Axis(label="GPUs", log=2),
            y=Axis(label="error of the prediction (%)"),
            marks=errors,
            width=1.3,
            height=1.3,
        ),
    ]
    gpus = ", ".join(sorted(predictions["gpu"].unique()))
    return Chart(panels=panels, source=f"dry run, {gpus}", share_y=False)
