"""The report: every figure that the columns allow, a note for the others, never a crash."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench import figures, report_verb
from bench.__main__ import main

EXAMPLE = Path(__file__).parent.parent / "results" / "example.csv"
NAMES = ("throughput", "traffic", "memory")


def test_the_shipped_rows_make_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--rows", str(EXAMPLE), "--out", str(tmp_path)]) == 0
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")}
    table = capsys.readouterr().out
    assert "tokens/s" in table
    for svg in tmp_path.glob("*.svg"):
        text = svg.read_text()
        assert "sequence length (tokens)" in text
        assert "2 ranks" in text
        assert "measured" in text
    assert "tokens/s" in (tmp_path / "throughput.svg").read_text()
    assert "MiB" in (tmp_path / "memory.svg").read_text()


def test_the_shipped_rows_are_what_they_should_be() -> None:
    data = report_verb.load([EXAMPLE])
    alone = data[data["ring_parallel_size"] == 1]
    assert (len(alone), len(data) - len(alone)) == (4 * 2 * 3, 4 * 2 * 3)  # ring 2 and 4
    assert (data["comm_bytes_total"] == data["theory_comm_bytes_total"]).all()
    for _, cells in data.groupby(["world_size", "seq_len"]):
        assert cells["loss_last"].max() - cells["loss_last"].min() < 1e-4  # fp32


def test_layouts_are_named_and_in_order() -> None:
    data = report_verb.load([EXAMPLE])
    data["layout"] = [figures.layout(row) for row in data.to_dict("records")]
    plain = ["tp", "tp_sp", "ulysses", "odysseus"]
    assert figures.layouts_of(data) == [*plain, *(f"{m} x ring 2" for m in plain), "ring 4"]
    assert figures.layout({"method": "tp"}) == "tp"  # rows from before there were rings


def test_the_shipped_rings_make_the_balance_figure(tmp_path: Path) -> None:
    rows = EXAMPLE.with_name("ring.csv")
    assert main(["report", "--rows", str(rows), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "balance.svg").read_text()
    assert "attention FLOPs, busiest rank / mean" in text
    assert "1.88" in text
    data = report_verb.load([rows])
    share = data["attention_flops_max"] / data["attention_flops_mean"]
    assert (share[data["ring_order"] == "zigzag"] == 1).all()
    ring = data["ring_parallel_size"][data["ring_order"] == "contiguous"]
    assert (share[ring.index] == (2 * ring - 1) / ring).all()


def test_missing_columns_leave_a_figure_out(tmp_path: Path) -> None:
    data = report_verb.load([EXAMPLE]).drop(columns=["theory_comm_bytes_total", "tokens_per_s"])
    notes = figures.draw_all(data, tmp_path)
    assert "throughput: left out, no tokens_per_s in these rows" in notes
    assert "traffic: left out, no theory_comm_bytes_total in these rows" in notes
    assert {path.stem for path in tmp_path.iterdir()} == {"memory"}


def test_failed_rows_are_not_drawn(tmp_path: Path) -> None:
    table = pd.read_csv(EXAMPLE, dtype=str, keep_default_na=False)
    table.loc[table["method"] == "tp", "status"] = "error"
    path = tmp_path / "rows.csv"
    table.to_csv(path, index=False)
    assert set(report_verb.load([path])["method"]) == {"tp_sp", "ulysses", "odysseus"}
    table["status"] = "oom_gpu"
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match="none has status ok"):
        report_verb.load([path])
