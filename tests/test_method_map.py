"""The map of methods: its cells, its file, its figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bench import method_map, ranking, theory
from bench.__main__ import main
from methods import METHODS
from tests.test_ranking import BASE

SHALLOW = replace(BASE, model=replace(BASE.model, num_hidden_layers=3))


def test_layouts_keep_the_sequence_axis_in_a_node_or_over_all() -> None:
    run = replace(SHALLOW, world_size=16)
    found = {(r.sequence_size, r.ring_parallel_size) for r in method_map.layouts(run)}
    assert found == {(8, 1), (8, 2), (16, 1)}


def test_a_cell_is_the_fastest_of_its_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(SHALLOW, world_size=2, seq_len=8192)
    row = method_map.cell(run)
    found = ranking.ranked(method_map.layouts(run), lambda line: None)
    assert row["method"] == found[0].run.method
    assert row["tokens_per_s_per_gpu"] == max(c.tokens_per_s_per_gpu for c in found)
    assert row["next_slower"] >= 0
    monkeypatch.setattr(ranking, "fitting", lambda run: None)
    assert method_map.cell(run)["method"] == method_map.NOTHING


def test_the_files_and_what_is_there_already(tmp_path: Path) -> None:
    path = tmp_path / "map"
    flags = "--model.name_or_path llama3-8b --model.num_hidden_layers 3"
    flags += f" --map {path} --map_world_sizes [2] --map_seq_lens"
    assert main(["plan", *flags.split(), "[8192]"]) == 0
    first = (tmp_path / "map.csv").read_text()
    assert main(["plan", *flags.split(), "[8192,16384]"]) == 0
    both = (tmp_path / "map.csv").read_text()
    assert both.startswith(first)
    assert len(pd.read_csv(tmp_path / "map.csv")) == 2
    assert (tmp_path / "map.png").stat().st_size > 0


def test_lines_are_where_the_fewest_bytes_change() -> None:
    run = replace(SHALLOW, world_size=8)
    (at, *_) = method_map.least_bytes_change(run, 1024, 2**20)

    def least(length: float) -> str:
        sizes = {m: theory.line(replace(run, method=m)) for m in METHODS}
        return min(sizes, key=lambda m: sizes[m][0] * int(length) + sizes[m][1])

    assert least(at * 0.95) != least(at * 1.05)


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--map", "no/such/folder", "--world_size", "8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "map = no/such/folder.csv cannot be written" in line
