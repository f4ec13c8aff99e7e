"""Growth of a step's time, bytes and memory with the sequence length and the number of blocks.

python -m bench sweep --config scripts/sweeps/growth_lengths.yml --out results/growth.csv
python -m bench sweep --config scripts/sweeps/growth_layers.yml --out results/growth.csv
python -m scripts.studies.growth [ROWS]    default results/growth.csv
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bench.report import draw_matplotlib, labels, spread

QUANTITIES = {
    "step_ms_p50": "step (ms)",
    "flops": "model FLOPs of a rank",
    "comm_bytes_total": "sent by a rank (MiB)",
    "peak_memory_bytes": "peak of a rank (MiB)",
}
AXES = {"seq_len": "tokens", "layers": "blocks"}


def read(path: Path) -> dict[str, pd.DataFrame]:
    """The rows with growing `seq_len`, and those with growing `layers`."""
    rows = pd.read_csv(path)
    rows = rows[rows["status"] == "ok"]
    layers = rows["model"].map(lambda label: int(re.findall(r"num_hidden_layers=(\d+)", label)[0]))
    rows = rows.assign(layers=layers)
    rows["flops"] = rows["model_tflops_per_gpu"] * rows["step_ms_p50"] * 1e9
    is_length_study = rows["model"] == rows.loc[rows["seq_len"].idxmax(), "model"]
    return {"seq_len": rows[is_length_study], "layers": rows[~is_length_study]}


def exponents(rows: pd.DataFrame, over: str) -> pd.DataFrame:
    """Exponents of each quantity by method: over all lengths or depths (least squares of the
    logarithms), and over the last doubling."""
    exponents_by_method = []
    for method, group in rows.groupby("method", sort=False):
        ordered = group.sort_values(over)
        x = np.log(ordered[over].to_numpy(float))
        row: dict[str, object] = {"method": method}
        for name in QUANTITIES:
            y = np.log(ordered[name].to_numpy(float))
            row[name] = np.polyfit(x, y, 1)[0]
            row[f"{name}, last"] = (y[-1] - y[-2]) / (x[-1] - x[-2])
        exponents_by_method.append(row)
    return pd.DataFrame(exponents_by_method).set_index("method")


def figure(parts: dict[str, pd.DataFrame]) -> Figure:
    """A row of panels per axis of growth, and a panel per quantity except FLOPs."""
    shown = [name for name in QUANTITIES if name != "flops"]
    drawn = Figure(figsize=(7.2, 4.4))
    panels = drawn.subplots(len(parts), len(shown), squeeze=False)
    for (over, rows), row in zip(parts.items(), panels, strict=True):
        for axes, name in zip(row, shown, strict=True):
            for method in labels.methods_of(rows):
                line = rows[rows["method"] == method].sort_values(over)
                unit = labels.MIB if "bytes" in name else 1
                style = labels.style_of(method)
                axes.loglog(line[over], line[name] / unit, label=method, **style)
                if name == "step_ms_p50":
                    ends = spread.with_spread(line)[["low_ms", "high_ms"]]
                    axes.vlines(line[over], *ends.to_numpy().T, colors=style["color"], lw=0.8)
            at = sorted(rows[over].unique())
            axes.set_xticks(at, [labels.length_label(n) for n in at])
            axes.minorticks_off()
            draw_matplotlib.log_ticks(axes.yaxis)
            axes.set_xlabel(AXES[over])
            axes.set_ylabel(QUANTITIES[name])
    handles, names = panels[0][0].get_legend_handles_labels()
    drawn.legend(handles, names, frameon=False, loc="outside upper center", ncols=len(names))
    first = next(iter(parts.values())).iloc[0]
    machine = f"{first['hardware']}, {first['world_size']} ranks"
    source = f"measured on {machine}, {str(first['git_commit'])[:8]}"
    note = spread.note(spread.with_spread(pd.concat(parts.values())))
    drawn.supxlabel(f"{source}. {note}", fontsize=6)
    return drawn


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "results/growth.csv")
    parts = read(path)
    for over, rows in parts.items():
        print(over)
        print(exponents(rows, over).round(2).T.to_string())
    with draw_matplotlib.styled():
        draw_matplotlib.save(figure(parts), path.with_suffix(""))


if __name__ == "__main__":
    main()
