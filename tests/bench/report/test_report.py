"""The report: every figure that the columns allow, a note for the others, never a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from bench.__main__ import main
from bench.report import catalogue, draw_matplotlib, draw_plotly, inputs, labels, page
from tests.support.paths import RESULTS
from tests.support.reports import (
    EVIL,
    EXAMPLE,
    OF_CELLS,
    cards_of,
    hostile,
    on_gpus,
    shipped,
    written,
)

TRACED = (
    "run --dry_run true --model.name_or_path llama3-8b --model.num_hidden_layers 3 --world_size 8 "
    "--seq_len 8192 --dtype bf16 --hardware h100-80g --activation_checkpointing true"
)


def drawable(*paths: Path) -> pd.DataFrame:
    return inputs.drawable(inputs.read([*paths]))


def test_the_shipped_rows_make_every_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = written(on_gpus(), tmp_path / "rows.csv")
    out = tmp_path / "out"
    assert main(["report", "--rows", str(rows), "--out", str(out)]) == 0
    made = {path.name for path in out.iterdir()}
    files = {f"{name}.{kind}" for name in OF_CELLS for kind in ("png", "svg", "pdf")}
    assert made == files | {"report.html"}
    assert "tokens/s" in capsys.readouterr().out
    for name in ("throughput", "traffic", "memory"):
        text = (out / f"{name}.svg").read_text()
        assert "sequence length (tokens)" in text
        assert "2 ranks" in text
        assert "measured" in text
    assert "tokens/s" in (out / "throughput.svg").read_text()
    assert "MiB" in (out / "memory.svg").read_text()
    assert (out / "mfu.pdf").read_bytes().startswith(b"%PDF")


def test_the_shipped_rows_have_the_expected_cells() -> None:
    data = drawable(EXAMPLE)
    alone = data[data["ring_parallel_size"] == 1]
    assert (len(alone), len(data) - len(alone)) == (4 * 2 * 3, 5 * 3)  # ring 2 of each, ring 4
    assert (data["comm_bytes_total"] == data["theory_comm_bytes_total"]).all()
    for _, cells in data.groupby(["world_size", "seq_len"]):
        assert cells["loss_last"].max() - cells["loss_last"].min() < 1e-4  # fp32


def test_layouts_are_named_and_in_order() -> None:
    plain = ["tp", "tp_sp", "ulysses", "odysseus"]
    found = labels.layouts_of(drawable(EXAMPLE))
    assert found == [*plain, *(f"{m} x ring 2" for m in plain), "ring 4"]
    assert labels.layout({"method": "tp"}) == "tp"  # rows from before there were rings
    of_tsp = {"method": "tsp", "ring_parallel_size": 1, "ring_order": "contiguous"}
    assert labels.layout(of_tsp) == "tsp contiguous"
    second = {"ring_parallel_size": 4, "sequence_parallel_size": 1, "tensor_parallel_size": 2}
    assert labels.layout({"method": "ulysses", **second}) == "ulysses x ring 4"


def test_a_pure_ring_is_one_layout_whatever_its_method(tmp_path: Path) -> None:
    """The row with the most steps is kept, else the latest."""
    table = shipped()
    ring = table["ring_parallel_size"] == "4"
    given = inputs.read([EXAMPLE])
    kept = inputs.drawable(given)
    kept = kept[kept["layout"] == "ring 4"]
    assert [*kept["utc"]] == [*table[ring].groupby("seq_len", sort=False)["utc"].max()]
    assert given.notes == [
        "9 rows of pure rings are merged with another of the same cell: without a sequence axis "
        "all methods are the same"
    ]
    table["steps"] = "3"
    table.loc[ring & (table["method"] == "tp"), "steps"] = "9"
    kept = drawable(written(table, tmp_path / "rows.csv"))
    assert set(kept[kept["layout"] == "ring 4"]["method"]) == {"tp"}


def test_the_shipped_rings_make_the_balance_figure() -> None:
    (chart,) = cards_of(RESULTS / "ring.csv")["balance"].charts
    contiguous, zigzag = chart.panels[0].marks
    assert set(zigzag.y) == {1}
    assert list(contiguous.y) == [(2 * ring - 1) / ring for ring in contiguous.x]


def test_charts_name_their_units_and_source() -> None:
    everything = [*RESULTS.glob("*.csv"), RESULTS / "verify" / "tp.csv"]
    found = cards_of(*everything, RESULTS / "emulated" / "errors.csv")
    drawn = {name for name, card in found.items() if card.charts}
    others = {"ablation", "balance", "compare", "prediction", "verify", "map", "ladder"}
    others |= {"validation"}
    assert drawn == {*OF_CELLS, *others} - {"strong_scaling"}
    assert catalogue.left_out([*found.values()]) == (
        "figures left out: Strong scaling (no layout has the same seq_len, step_tokens on several "
        "numbers of ranks, or the ranks share the cores of a CPU); "
        "Longest sequence that fits (no row of plan --objective longest --out); "
        "A block in time (no JSON of run --trace among the files); "
        "Memory over a step (no JSON of run --memory_trace among the files)"
    )
    for card in found.values():
        for chart in card.charts:
            assert chart.source or card.name == "verify"
            for axis in (axis for panel in chart.panels for axis in (panel.x, panel.y)):
                assert "(" in axis.label or axis.label in {
                    *("step", "ranks", "GPUs", "ranks of the ring", "gradient norm"),
                    *("", "ours / peer's", "emulated links", "toggle added"),
                    "attention FLOPs, busiest rank / mean",
                    *(f"relative difference\nof {of}" for of in ("loss", "gradient norm")),
                }


def test_measured_and_dry_rows_are_never_in_one_chart(tmp_path: Path) -> None:
    table = on_gpus()
    dry = table.assign(mode="dry_run", hardware="h100-80g")
    found = cards_of(written(pd.concat([table, dry]), tmp_path / "both.csv"))
    for name in OF_CELLS:
        assert "measured" not in found[name].title
        origins = {
            ("measured" in chart.source, "dry run" in chart.source): chart.origin
            for chart in found[name].charts
        }
        assert origins == {(True, False): "measured", (False, True): "predicted"}


def test_scaling_charts_keep_tokens_constant(tmp_path: Path) -> None:
    found = cards_of(written(on_gpus(), tmp_path / "rows.csv"))
    (strong,), (weak,) = found["strong_scaling"].charts, found["weak_scaling"].charts
    assert [panel.title for panel in strong.panels] == [
        f"{n} tokens, {n} per step" for n in ("512", "1K", "2K")
    ]
    assert [panel.title for panel in weak.panels] == ["256 tokens per rank", "512 tokens per rank"]
    data = drawable(EXAMPLE).set_index(["layout", "world_size", "seq_len"])
    line = next(mark for mark in weak.panels[0].marks if mark.label == "tp")
    assert list(line.y) == [
        data.loc[("tp", ranks, 256 * ranks), "tokens_per_s_per_gpu"] for ranks in (2, 4)
    ]


def test_cells_that_are_measured_and_predicted_are_compared() -> None:
    folder = RESULTS / "emulated" / "none-1"
    scatter, lengths = cards_of(folder / "measured.csv", folder / "predicted.csv")[
        "prediction"
    ].charts
    points = sum(len(mark.x) for mark in scatter.panels[0].marks[3:])
    assert points == 20, "five layouts at four lengths"
    assert "measured on" in lengths.panels[0].title
    assert "Whiskers: 20 % to 80 % of the steps." in scatter.note


def test_a_trace_makes_the_timeline(tmp_path: Path) -> None:
    paths = [tmp_path / f"{method}.json" for method in ("tp", "odysseus")]
    for path in paths:
        flags = [*TRACED.split(), "--method", path.stem, "--trace", str(path)]
        assert main([*flags, "--out", str(tmp_path / "runs.csv")]) == 0
    (chart,) = cards_of(*paths)["timeline"].charts
    forward, backward = chart.panels
    lanes = ["tp compute", "tp links", "odysseus compute", "odysseus links"]
    assert list(forward.y.ticks.values()) == lanes
    assert chart.source == "llama3-8b(num_hidden_layers=3), 8192 tokens, 8 x h100-80g, bf16"
    spans = {
        panel.title: max(b + s for m in panel.marks for b, s in zip(m.base, m.size, strict=True))
        for panel in (forward, backward)
    }
    assert spans["backward of a block"] > 1.5 * spans["forward of a block"] > 0


def test_missing_columns_leave_a_figure_out(tmp_path: Path) -> None:
    table = shipped().drop(columns=["theory_comm_bytes_total", "tokens_per_s"])
    found = cards_of(written(table, tmp_path / "rows.csv"))
    assert found["throughput"].left_out == "no tokens_per_s in these rows"
    assert "theory_comm_bytes_total" in found["traffic"].left_out
    assert found["memory"].charts
    least = written(shipped()[["method", "status", "seq_len"]], tmp_path / "least.csv")
    assert main(["report", "--rows", str(least), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.html"}


def test_failed_rows_are_in_the_table_only(tmp_path: Path) -> None:
    table = shipped()
    table.loc[table["method"] == "tp", "status"] = "error"
    path = written(table, tmp_path / "rows.csv")
    assert set(drawable(path)["method"]) == {"tp_sp", "ulysses", "odysseus"}
    assert "error" in str(page.table(inputs.read([path]))["columns"])
    table["status"] = "oom_gpu"
    path = written(table, tmp_path / "rows.csv")
    assert drawable(path).empty
    assert main(["report", "--rows", str(path), "--out", str(tmp_path / "out")]) == 0


def test_the_last_row_of_a_cell_measured_twice_is_shown(tmp_path: Path) -> None:
    table = shipped()
    path = written(pd.concat([table, table.assign(tokens_per_s="7")]), tmp_path / "rows.csv")
    assert len(inputs.read([path]).cells) == len(table)
    assert set(drawable(path)["tokens_per_s"]) == {7}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nothing.csv", None),
        ("empty.csv", b""),
        ("picture.csv", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\xff\xfe"),
        ("other.csv", b"a,b\n1,2\n"),
        ("quote.csv", b'method,status,seq_len\n"tp,ok,1\n'),
        ("trace.json", b"[1, 2]"),
        ("torn.json", b'{"traceEvents": ['),
        ("folder", None),
    ],
)
def test_a_file_without_results_ends_with_one_line(
    name: str, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["report", "--rows", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / name) in line
    assert not (tmp_path / "out").exists()


def test_markup_and_damaged_numbers_stay_text(tmp_path: Path) -> None:
    path = written(hostile(), tmp_path / f"{EVIL[9:15]}.csv")
    with path.open("a") as file:
        file.write("one,cell\n" + "far,too,many," * 99 + "\n")
    given = inputs.read([path])
    assert any("more cells than its header" in note for note in given.notes)
    cards = catalogue.cards(given, inputs.drawable(given))
    assert any("in no figure" in note for note in given.notes)
    assert list(catalogue.write_figures(cards, tmp_path / "out"))
    text = page.html(given, cards)
    assert text.count("</script>") == 4  # the template's own
    assert EVIL not in text
    assert "<img" not in text.split("<script>")[0] + text.rsplit("</script>", 1)[1]
    plotted = json.dumps([draw_plotly.drawn(c)["panels"] for card in cards for c in card.charts])
    assert "<img" not in plotted
    assert "&lt;img" in plotted  # plotly shows it as text
    content = text.split('id="content">')[1].split("</script>")[0]
    assert "NaN" not in content
    assert json.loads(content)["cards"][0]["charts"]
    assert EVIL in str(json.loads(content)["table"])


def test_versions_of_rows_may_differ(tmp_path: Path) -> None:
    old = shipped().drop(columns=["ring_parallel_size", "data_parallel_size", "regather"])
    old = old[: len(old) // 2]
    paths = written(old, tmp_path / "old.csv"), written(shipped(), tmp_path / "new.csv")
    both = drawable(*paths)
    assert (both["ring_parallel_size"] >= 1).all()
    assert len(inputs.read([*paths]).cells) == len(old) + len(shipped())


def test_few_keeps_both_ends() -> None:
    assert labels.few([3, 1, 2, 3], 4) == [1, 2, 3]
    found = labels.few(range(1000), 7)
    assert len(found) == 7
    assert (found[0], found[-1]) == (0, 999)


def test_a_name_is_no_formula() -> None:
    assert draw_matplotlib.plain("$x$\n") == r"\$x\$ "
    assert len(draw_matplotlib.plain("x" * 1000, 60)) == 60
