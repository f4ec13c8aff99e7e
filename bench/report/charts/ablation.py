"""The ablation figure: peak activations per rank, with memory tricks switched on one by one."""

from __future__ import annotations

import pandas as pd

from bench.report.chart import Axis, Bars, Chart, Mark, Panel
from bench.report.charts.cells import rule_across
from bench.report.labels import STACK_STYLE, bytes_unit, few, length_label, methods_of, source_of

LADDER: dict[str, dict[str, bool]] = {
    "no trick": {},
    "+ checkpointing": {"activation_checkpointing": True},
    "+ tiled loss": {"tiled_loss_compute": True},
    "+ tiled MLP": {"tiled_mlp_compute": True},
    "+ checkpoint offload": {"activation_checkpoint_cpu_offload": True},
}
"""Options that each rung adds to those of the rungs before it, by the rung's name."""
_IN_HOST = {"fill": False, "edgecolor": "black", "linestyle": ":", "linewidth": 0.8}
COLUMNS = ["theory_peak_activation_bytes", *(trick for rung in LADDER.values() for trick in rung)]


def ladder(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are rungs of the ladder, with the rung's number in column `rung`."""
    tricks = [next(iter(added)) for added in LADDER.values() if added]
    texts = rows[tricks].astype(str)
    rungs = []
    for rung in range(len(LADDER)):
        fits = (texts == [str(number < rung) for number in range(len(tricks))]).all(axis=1)
        rungs.append(rows[fits].assign(rung=rung))
    return pd.concat(rungs)


def chart(rows: pd.DataFrame) -> Chart | str:
    """A panel per method with a group of bars per length; the reason if a rung is missing."""
    needed = [*COLUMNS, "peak_activation_bytes", "peak_host_bytes"]
    rungs = ladder(rows[(rows["status"] == "ok") & rows[needed].notna().all(axis=1)])
    if rungs["rung"].nunique() < len(LADDER):
        return "no ladder of tricks in these rows"
    rungs = rungs.drop_duplicates(["method", "seq_len", "rung"], keep="last")
    lengths = few(rungs["seq_len"], 5)
    rungs = rungs[rungs["seq_len"].isin(lengths)]
    highest = (rungs["peak_activation_bytes"] + rungs["peak_host_bytes"]).max()
    divisor, unit = bytes_unit(highest)
    group = len(LADDER) + 1
    x = Axis(
        label="sequence length (tokens)",
        ticks={
            number * group + (group - 2) / 2: length_label(n) for number, n in enumerate(lengths)
        },
    )
    y = Axis(label=f"peak activations of a rank ({unit})", limits=(0, 1.05 * highest / divisor))
    panels = [
        Panel(title=method, x=x, y=y, marks=_marks(rungs[rungs["method"] == method], lengths))
        for method in methods_of(rungs)
    ]
    return Chart(panels=panels, source=source_of(rungs), columns=4)


def _marks(rungs: pd.DataFrame, lengths: list[float]) -> list[Mark]:
    """The bars of each rung over the lengths, host memory on top of them, and the formula's
    lines."""
    marks: list[Mark] = []
    divisor, unit = bytes_unit((rungs["peak_activation_bytes"] + rungs["peak_host_bytes"]).max())
    place = rungs["seq_len"].map(lengths.index) * (len(LADDER) + 1) + rungs["rung"]
    on_device, on_host = (
        rungs[name] / divisor for name in ("peak_activation_bytes", "peak_host_bytes")
    )
    for rung, (name, style) in enumerate(zip(LADDER, STACK_STYLE, strict=True)):
        here = rungs["rung"] == rung
        size = [*on_device[here]]
        about = [f"{name}: {value:.4g} {unit} on the device" for value in size]
        at = [*place[here]]
        base = [0.0] * len(at)
        marks.append(Bars(label=name, at=at, size=size, base=base, style=style, about=about))
    marks.append(
        Bars(
            label="in host memory",
            at=[*place],
            size=[*on_host],
            base=[*on_device],
            style=_IN_HOST,
            about=[f"{value:.4g} {unit} in host memory" for value in on_host],
        )
    )
    formula = [*rungs["theory_peak_activation_bytes"] / divisor]
    return [*marks, rule_across("formula", [*place], formula)]
