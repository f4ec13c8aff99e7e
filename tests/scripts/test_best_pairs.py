"""The figure of the fastest pair by length, GPUs and network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bench.planner import map_file
from bench.planner.map_file import Tried
from bench.report import draw_matplotlib
from bench.report.chart import Bars, Line
from odysseus.config.run import ModelOptions
from scripts.studies import best_pairs
from tests.support.small_runs import LLAMA3_ON_4_GPUS

TRIED = Tried(["tp_sp", "ulysses", "ulysses+tp_sp"])
SLOW = "h100-80g(network_bytes_per_s=1.25e+10)"


def write_map(path: Path, hardware: str, worlds: list[int], model: str = "llama3-8b") -> None:
    run = replace(LLAMA3_ON_4_GPUS, hardware=hardware, vocab_parallel="auto")
    run = replace(run, model=ModelOptions(name_or_path=model))
    result = {"method": "ulysses", "tensor_parallel_size": 1, "ring_parallel_size": 1}
    result |= {"data_parallel_size": 1, "next_slower": 0.04}
    cells = [
        map_file.identity(replace(run, world_size=world, seq_len=length), TRIED) | result
        for world in worlds
        for length in (8192, 131072)
    ]
    pd.DataFrame(cells).to_csv(path, index=False)


def test_a_row_for_each_number_of_gpus_and_network(tmp_path: Path) -> None:
    write_map(tmp_path / "fast.csv", "h100-80g", [8, 64])
    write_map(tmp_path / "slow.csv", SLOW, [64])
    write_map(tmp_path / "b200.csv", "b200-180g", [8])
    write_map(tmp_path / "large.csv", "h100-80g", [8], "llama3-70b")
    write_map(tmp_path / "large_b200.csv", "b200-180g", [8], "llama3-70b")
    chart = best_pairs.chart(best_pairs.read(tmp_path))
    titles = [panel.title for panel in chart.panels]
    assert sorted(titles) == [
        f"{model}, {gpu}"
        for model in ("llama3-70b", "llama3-8b")
        for gpu in ("b200-180g", "h100-80g")
    ]
    panel = chart.panels[titles.index("llama3-8b, h100-80g")]
    assert [*panel.y.ticks.values()] == ["8", "64, 12.5 GB/s", "64"]
    (squares,) = (mark for mark in panel.marks if isinstance(mark, Bars))
    assert (squares.label, len(squares.at)) == ("ulysses", 6)
    borders = [mark.x[0] for mark in panel.marks if isinstance(mark, Line)]
    assert len(borders) == 3 * 2  # tp_sp or a mixture, then ulysses
    assert draw_matplotlib.draw(chart).axes


def test_a_folder_without_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["best_pairs", str(tmp_path)])
    with pytest.raises(SystemExit, match="has no CSV files; valid: a folder"):
        best_pairs.main()


def test_maps_that_do_not_fit_together(tmp_path: Path) -> None:
    write_map(tmp_path / "fast.csv", "h100-80g", [8, 64])
    write_map(tmp_path / "again.csv", "h100-80g", [64])
    with pytest.raises(ValueError, match="two maps of one model, GPU and network"):
        best_pairs.read(tmp_path)
    other = pd.read_csv(tmp_path / "fast.csv").assign(dtype="fp32")
    other.to_csv(tmp_path / "again.csv", index=False)
    with pytest.raises(ValueError, match="maps of different dtype: fp32, bf16"):
        best_pairs.read(tmp_path)
    other.drop(columns="dtype").to_csv(tmp_path / "again.csv", index=False)
    with pytest.raises(ValueError, match=r"again.csv has no column dtype; valid: the CSV of plan"):
        best_pairs.read(tmp_path)
