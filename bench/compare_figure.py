"""The figure of a comparison: ours over each peer's, time, bytes and memory."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from bench.layouts import STACK_STYLE

_QUANTITIES = {
    "ratio": "step time",
    "comm_bytes": "bytes sent",
    "peak_bytes": "peak memory",
}


def figure(rows: pd.DataFrame) -> Figure:
    """A bar for each cell and quantity, below 1 where ours takes less; whiskers 20 % to 80 % of
    the pairs."""
    names = [
        f"{r.peer}\n{r.world_size} ranks, {r.seq_len} tokens"
        + ", blocks alone" * (getattr(r, "part", "model") == "blocks")  # older files have no parts
        for r in rows.itertuples()
    ]
    drawn = Figure(figsize=(6.4, 1.2 + 0.62 * len(rows)), layout="constrained")
    axes = drawn.subplots()
    places = range(len(rows))
    for index, (name, label) in enumerate(_QUANTITIES.items()):
        at = [place + 0.26 * (index - 1) for place in places]
        if name == "ratio":
            values = rows["ratio_p50"]
            ends = [values - rows["ratio_p20"], rows["ratio_p80"] - values]
            axes.errorbar(values, at, xerr=ends, fmt="none", ecolor="black", capsize=2, lw=0.8)
        else:
            values = rows[f"ours_{name}"] / rows[f"peer_{name}"]
        axes.barh(at, values, height=0.24, label=label, edgecolor="white", **STACK_STYLE[index])
        for place, value in zip(at, values, strict=True):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axes.annotate(f"{value:.2f}", (0.02, place), va="center", fontsize=6, bbox=box)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("ours / peer's")
    drawn.legend(frameon=False, loc="outside upper center", ncols=len(_QUANTITIES))
    first = rows.iloc[0]
    machine = f"measured on {first['device']}, {first['pairs']} pairs, {first['git_commit'][:8]}"
    drawn.text(0.995, 0.0, machine, ha="right", va="bottom", fontsize=5)
    return drawn
