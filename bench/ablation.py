"""The ablation figure: what is left of a rank's activations as tricks are switched on in turn."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.figures import MIB, STACK_STYLE, length_label, methods_of, source_of

LADDER: dict[str, dict[str, bool]] = {
    "no trick": {},
    "+ checkpointing": {"activation_checkpointing": True},
    "+ tiled loss": {"tiled_loss_compute": True},
    "+ tiled MLP": {"tiled_mlp_compute": True},
    "+ checkpoint offload": {"activation_checkpoint_cpu_offload": True},
}
"""Each rung adds to those before it."""
COLUMNS = ["theory_peak_activation_bytes", *(trick for rung in LADDER.values() for trick in rung)]


def ladder(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are rungs of the ladder, with their place on it in column `rung`."""
    tricks = [next(iter(added)) for added in LADDER.values() if added]
    found = []
    for rung in range(len(LADDER)):
        fits = pd.Series(data=True, index=rows.index)
        for number, trick in enumerate(tricks):
            fits &= rows[trick].astype(str) == str(number < rung)
        found.append(rows[fits].assign(rung=rung))
    return pd.concat(found)


def figure(rows: pd.DataFrame) -> Figure | None:
    """A panel for each method, a group of bars for each length; None without a whole ladder."""
    rungs = ladder(rows)
    if rungs["rung"].nunique() < len(LADDER):
        return None
    methods, lengths = methods_of(rungs), sorted(rungs["seq_len"].unique())
    drawn = Figure(figsize=(max(7.0, 1.2 + 2.3 * len(methods)), 3.8), layout="constrained")
    panels = drawn.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        for _, row in rungs[rungs["method"] == method].iterrows():
            at = lengths.index(row["seq_len"]) * (len(LADDER) + 1) + row["rung"]
            measured, host = row["peak_activation_bytes"], row["peak_host_bytes"]
            axes.bar(at, measured / MIB, 0.8, edgecolor="white", lw=0.3, **STACK_STYLE[row["rung"]])
            axes.bar(at, host / MIB, 0.8, measured / MIB, fill=False, ec="black", ls=":", lw=0.8)
            axes.hlines(row["theory_peak_activation_bytes"] / MIB, at - 0.5, at + 0.5, "black")
        axes.set_title(method, fontsize=9)
        axes.set_xticks(
            [number * (len(LADDER) + 1) + (len(LADDER) - 1) / 2 for number in range(len(lengths))],
            [length_label(tokens) for tokens in lengths],
        )
        axes.tick_params(axis="x", length=0)
    panels[0].set_ylim(0, 1.05 * rungs["peak_activation_bytes"].max() / MIB)
    panels[0].set_ylabel("peak activations of a rank (MiB)")
    drawn.supxlabel(f"sequence length (tokens)\n{source_of(rungs)}", fontsize=7)
    handles: list[Any] = [
        Patch(label=name, edgecolor="white", **style)
        for style, name in zip(STACK_STYLE, LADDER, strict=True)
    ]
    handles.append(Patch(label="in host memory", fill=False, ec="black", ls=":"))
    handles.append(Line2D([], [], color="black", label="formula"))
    drawn.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return drawn
