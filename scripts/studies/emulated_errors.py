"""Table, figures and two CSVs of the prediction errors that scripts/studies/emulated_study.sh made.

In the folder, rounds.csv has every cell of every round, errors.csv each cell over its rounds.

python -m scripts.studies.emulated_errors [FOLDER]    default results/emulated
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from bench.config import grid, options
from bench.report import accuracy, draw_matplotlib
from bench.report.charts import prediction
from bench.theory import traffic as theory_traffic
from odysseus.config.run import RunConfig

RATES = ("50mbit", "200mbit", "800mbit", "none")


def read_rounds(folder: Path, rate: str, suffix: str = "") -> dict[int, list[pd.DataFrame]]:
    """Measured and predicted rows of each finished round at one speed, by its number."""
    rounds = {}
    for at in sorted(folder.glob(f"{rate}-*")):
        files = [at / f"{source}{suffix}.csv" for source in accuracy.SOURCES]
        if all(file.exists() for file in files):
            rounds[int(at.name.rpartition("-")[2])] = [pd.read_csv(file) for file in files]
    return rounds


def method_cells() -> dict[str, RunConfig]:
    """A cell of each method."""
    parser = options.parser("sweep", "")
    options.add_grid_options(parser)
    parsed = options.parse(parser, ["--config", "scripts/sweeps/emulated.yml"])
    return {run.method: run for run in grid.expand(parsed)}


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/emulated")
    cells = []
    for rate in RATES:
        links = "links not throttled" if rate == "none" else f"links of {rate[:-4]} Mbit/s"
        for number, (measured, predicted) in read_rounds(folder, rate).items():
            machine = re.sub(r" ?\(.*?\)", "", measured["hardware"].iloc[0])  # (2 cores), (R)
            cluster = f"{links}, {machine}"
            cells.append(accuracy.matched(measured, predicted, cluster).assign(round=number))
    if not cells:
        valid = "a folder that scripts/studies/emulated_study.sh has measured"
        print(f"FOLDER is {folder}, without a finished round; valid: {valid}", file=sys.stderr)
        return 2
    rounds = pd.concat(cells, ignore_index=True)
    medians = accuracy.medians(rounds)
    for name, table in (("rounds", rounds), ("errors", medians)):
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6f")
    print(medians.to_string(index=False, formatters={"error": "{:+.1%}".format}))
    worst = medians.loc[medians["error"].abs().idxmax()]
    print(f"mean {medians['error'].abs().mean():.1%}, worst {worst['error']:+.1%}: {dict(worst)}")
    print("predicted in another order:", accuracy.misordered(rounds) or "none")
    slow = medians[medians["cluster"] == medians["cluster"].iloc[0]]
    lines = {name: theory_traffic.line(run) for name, run in method_cells().items()}
    changes = accuracy.crossings(slow, lambda a, b: theory_traffic.crossing(lines[a], lines[b]))
    print(changes.to_string(index=False, float_format="{:.0f}".format))
    prefetch = [
        pd.concat([accuracy.off_over_on(cells) for cells in both], axis=1, keys=accuracy.SOURCES)
        for suffix in ("-prefetch", "-prefetch-reversed")  # which of a pair comes first
        for both in read_rounds(folder, "200mbit", suffix).values()
    ]
    if prefetch:
        print("a step without ZeRO's prefetch, over one with it, links of 200 Mbit/s:")
        print(pd.concat(prefetch).groupby(level=["method", "seq_len"]).median().round(3))
    with draw_matplotlib.styled():
        if len(changes):
            drawn = prediction.crossing_figure(changes, slow["cluster"].iloc[0])
            draw_matplotlib.save(drawn, folder / "crossings")
        draw_matplotlib.save(draw_matplotlib.draw(prediction.scatter(rounds)), folder / "scatter")
        draw_matplotlib.save(
            draw_matplotlib.draw(prediction.over_lengths(medians)), folder / "over_lengths"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
