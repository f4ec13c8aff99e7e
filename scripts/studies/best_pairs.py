"""Draw the fastest pair of attention and MLP by length, GPUs and network, for models and GPUs.

A folder has the CSV files of ``plan --map``, one for each model, GPU and network.

python -m scripts.studies.best_pairs FOLDER     the figure is saved beside the folder
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bench.hardware import overrides, profiles
from bench.planner import map_file
from bench.report import draw_matplotlib
from bench.report.chart import Chart
from bench.report.charts import method_map

_NETWORK = "network_bytes_per_s"
_OF_A_ROW = ["model", "profile", "network", *map_file.CELL]


def read(folder: Path) -> pd.DataFrame:
    """Return the cells of all maps, with two more columns: the GPU's profile, and the network's
    bytes per second where they are not the profile's own (else 0).

    Raises:
        ValueError: the folder has no maps, or they differ in more than model, GPU and network.
    """
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise ValueError(f"{folder} has no CSV files; valid: a folder with those of plan --map")
    maps = [pd.read_csv(file) for file in files]
    for file, cells in zip(files, maps, strict=True):
        if missing := {*map_file.SAME, *map_file.CELL, "flags", "method"} - {*cells.columns}:
            raise ValueError(f"{file} has no column {min(missing)}; valid: the CSV of plan --map")
    data = pd.concat(maps, ignore_index=True)
    for name in {*map_file.SAME, "flags"} - {"model", "hardware"}:
        if len(values := data[name].fillna("").unique()) > 1:
            raise ValueError(
                f"{folder} has maps of different {name}: {', '.join(map(str, values))}"
            )
    parts = data["hardware"].map(overrides.split)
    networks = parts.map(lambda part: float(part[1].get(_NETWORK, 0)))
    data = data.assign(profile=parts.str[0], network=networks)
    if data.duplicated(_OF_A_ROW).any():
        raise ValueError(f"{folder} has two maps of one model, GPU and network")
    return data


def chart(data: pd.DataFrame) -> Chart:
    """Return one panel per model and GPU, with a row per number of GPUs and network."""
    lengths = sorted(set(data["seq_len"]))
    panels = [
        method_map.panel(_rows(cells), lengths, "GPUs", f"{model}, {gpu}")
        for (model, gpu), cells in data.groupby(["model", "profile"], sort=False)
    ]
    note = (
        "+4 %: the fastest other pair is 4 % slower. GB/s: the network's bandwidth per GPU, where "
        "it is not that of the profile."
    )
    columns = data["profile"].nunique()
    return Chart(panels=panels, columns=columns, source="predicted, dry runs", note=note)


def _rows(cells: pd.DataFrame) -> list[method_map.Row]:
    """The rows of one model and GPU: by number of GPUs, the profile's own network last."""
    by_row = defaultdict(list)
    for cell in cells.to_dict("records"):
        by_row[cell["world_size"], cell["network"]].append(cell)
    rows = []
    for world, network in sorted(by_row, key=lambda key: (key[0], key[1] == 0, key[1])):
        of = pd.DataFrame(by_row[world, network])
        run = replace(map_file.run_of(of, profiles.PROFILES), world_size=world)
        (stretches,) = method_map.fewest_of(run, of, map_file.tried_of(of).methods).values()
        label = f"{world}, {network / 1e9:g} GB/s" if network else f"{world}"
        rows.append(method_map.Row(label, by_row[world, network], stretches, names_fewest=False))
    return rows


def main() -> None:
    folder = Path(sys.argv[1])
    try:
        drawn = chart(read(folder))
    except ValueError as error:
        sys.exit(str(error))
    draw_matplotlib.save(draw_matplotlib.draw(drawn), folder)
    print(f"{folder}.png and .svg: {len(drawn.panels)} panels")


if __name__ == "__main__":
    main()
