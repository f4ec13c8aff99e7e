"""The errors of the predictions that scripts/emulated_study.sh made: a table, a CSV, two figures.

python -m scripts.emulated_errors [FOLDER]    default results/emulated
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from bench import figures, options, prediction, theory
from odysseus.config import RunConfig

RATES = ("50mbit", "200mbit", "800mbit", "none")
_CELL = ["cluster", "world_size", "seq_len", "sequence_parallel_size", "ring_parallel_size"]


def medians(rounds: list[pd.DataFrame]) -> pd.DataFrame:
    """Of the rounds at one speed: each cell's median times, and the error between those."""
    cells = pd.concat(rounds).groupby([*_CELL, "method", "layout"], sort=False)
    found = cells[["measured_ms", "predicted_ms"]].median().reset_index()
    found["error"] = found["predicted_ms"] / found["measured_ms"] - 1
    found["rounds"] = len(rounds)
    return found


def method_cells() -> dict[str, RunConfig]:
    """A cell of each method."""
    parser = options.parser("sweep", "")
    options.add_grid_options(parser)
    parsed = options.parse(parser, ["--config", "scripts/emulated.yml"])
    return {run.method: run for run in options.expand(parsed)}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/emulated")
    cells = []
    for rate in RATES:
        cluster = "links not throttled" if rate == "none" else f"links of {rate[:-4]} Mbit/s"
        rounds = []
        for at in sorted(folder.glob(f"{rate}-*")):
            both = (pd.read_csv(at / f"{how}.csv") for how in ("measured", "predicted"))
            rounds.append(prediction.matched(*both, cluster))
        cells.append(medians(rounds))
    found = pd.concat(cells, ignore_index=True)
    found.to_csv(folder / "errors.csv", index=False, float_format="%.4f")
    print(found.to_string(index=False, formatters={"error": "{:+.1%}".format}))
    worst = found.loc[found["error"].abs().idxmax()]
    print(f"mean {found['error'].abs().mean():.1%}, worst {worst['error']:+.1%}: {dict(worst)}")
    print("predicted in another order:", prediction.misordered(found) or "none")
    slow = found[found["cluster"] == found["cluster"].iloc[0]]
    lines = {name: theory.line(run) for name, run in method_cells().items()}
    changes = prediction.crossings(slow, lambda a, b: theory.crossing(lines[a], lines[b]))
    print(changes.to_string(index=False, float_format="{:.0f}".format))
    with figures.styled():
        if len(changes):
            drawn = prediction.crossing_figure(changes, slow["cluster"].iloc[0])
            figures.save(drawn, folder / "crossings")
        figures.save(prediction.scatter(found), folder / "scatter")
        figures.save(prediction.over_lengths(found), folder / "over_lengths")


if __name__ == "__main__":
    main()
