"""Reports of very many rows: in seconds, in bounded memory, with a note on omitted rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.report import catalogue, csv_table, draw_matplotlib, inputs, page
from bench.report.look import SCREEN
from tests.support.reports import cards_of, shipped, written

ROWS = 100_000


def cpu_s() -> float:
    """Return CPU seconds of this process and its finished children."""
    return sum(os.times()[:4])


@pytest.mark.slow
def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    """Times are relative to reading the file with pandas and drawing one chart with matplotlib,
    before and after: a busy machine slows down both."""
    random, table = np.random.default_rng(0), shipped()
    table = pd.concat([table] * (ROWS // len(table) + 1), ignore_index=True)[:ROWS]
    table["seq_len"] = random.integers(1, 5000, ROWS).astype(str)
    table["world_size"] = random.choice([2, 4, 8, 16, 32], ROWS).astype(str)
    table = table.assign(sequence_parallel_size=table["world_size"])
    table = table.assign(ring_parallel_size="1", hardware="AMD EPYC (64 cores)")
    path = written(table, tmp_path / "rows.csv")
    laps = [cpu_s()]
    pd.read_csv(path, dtype=str)
    laps.append(cpu_s())
    given = inputs.read([path])
    cards = catalogue.cards(given, inputs.drawable(given))
    text = page.html(given, cards)
    laps.append(cpu_s())
    pd.read_csv(path, dtype=str)
    laps.append(cpu_s())
    charts = [chart for card in cards for chart in card.charts]
    draw_matplotlib.save(draw_matplotlib.draw(charts[0]), tmp_path / "one", SCREEN.formats)
    laps.append(cpu_s())
    lines = [*catalogue.write_figures(cards, tmp_path / "out")]
    laps.append(cpu_s())
    draw_matplotlib.save(draw_matplotlib.draw(charts[0]), tmp_path / "one", SCREEN.formats)
    laps.append(cpu_s())
    read, page_made, read_again, one, all_charts, one_again = np.diff(laps)
    assert len([line for line in lines if ".png" in line]) == len(charts) == 4
    # On two cores with up to eight busy processes: 2.2 to 3.1, and 2.7 to 3.3.
    assert page_made < 4.2 * (read + read_again)
    assert page_made + all_charts < 4.5 * (read + read_again + one + one_again)
    assert len(text) < 20e6


def test_past_a_number_of_rows_only_the_last_are_kept_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_table, "_CHUNK", 7)
    table = shipped()
    paths = [written(table, tmp_path / f"{name}.csv") for name in ("one", "two")]
    whole = inputs.read(paths[:1]).cells
    assert whole["tokens_per_s"].tolist() == table["tokens_per_s"].astype(float).tolist()
    monkeypatch.setattr(csv_table, "MOST_ROWS", 30)
    given = inputs.read(paths[:1])
    assert given.cells["utc"].tolist() == table["utc"].tolist()[-30:]
    assert given.notes == [f"{paths[0]}: {len(table)} rows, of which only the last 30 are shown"]
    given = inputs.read(paths)
    assert set(given.cells["file"]) == {"two.csv"}
    assert given.notes[2] == "all files: 60 rows, of which only the last 30 are shown"


def test_the_page_says_that_its_table_has_the_last_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST_ROWS", 5)
    given = inputs.read([written(shipped(), tmp_path / "rows.csv")])
    text = page.html(given, [])
    assert f"the table has the last 5 of {len(shipped())} rows; the files have all" in text


def test_settings_that_differ_nowhere_are_one_set(tmp_path: Path) -> None:
    table = shipped().drop_duplicates(["method", "world_size", "seq_len"])
    assert len(cards_of(written(table, tmp_path / "rows.csv"))["memory"].charts) == 1
