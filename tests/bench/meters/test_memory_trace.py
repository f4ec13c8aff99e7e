"""Memory over a step: its points keep the peak, measured and counted, and a figure shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import rows
from bench.__main__ import main
from bench.meters import memory_trace
from bench.meters.memory import KINDS, MemoryMeter
from bench.report import draw_plotly, inputs
from bench.report.chart import Area
from bench.report.charts import memory_trace as figure
from tests.support.launched import SMALL
from tests.support.marks import slow
from tests.support.refusals import refused_line

CELL = f"run {SMALL} --world_size 2 --seq_len 256 --steps 1 --method ulysses"
DRY = "--dry_run true"
ON_GPU = f"{DRY} --hardware h100-80g --dtype bf16"


def traced(folder: Path, name: str, flags: str) -> tuple[Path, int]:
    """Run a cell. Return the file of its memory, and its row's peak in bytes."""
    path, out = folder / f"{name}.json", folder / f"{name}.csv"
    files = ["--memory_trace", str(path), "--out", str(out)]
    assert main([*CELL.split(), *flags.split(), *files]) == 0
    (row,) = rows.read(out).to_dict("records")
    return path, int(row["peak_memory_bytes"])


@pytest.mark.parametrize("flags", [slow(""), DRY, ON_GPU])
def test_the_highest_point_is_the_peak_to_the_byte(flags: str, tmp_path: Path) -> None:
    path, peak = traced(tmp_path, "memory", flags)
    found = memory_trace.parsed(json.loads(path.read_text()))
    assert found is not None
    assert max(map(sum, zip(*found.course.bytes.values(), strict=True))) == peak
    assert found.cell["mode"] == ("dry_run" if flags else "measured")
    assert found.course.bytes["activations"][-1] < max(found.course.bytes["activations"])


def test_few_points_keep_the_peak() -> None:
    meter, held = MemoryMeter(), []
    with meter:
        for size in range(1, 300):
            held.append(torch.empty(size))
            if size % 3 == 1:
                held.clear()
    kept = len(held)
    held.clear()  # after the step
    few = meter.course(20)
    assert len(few.at) <= 20
    assert max(few.bytes["activations"]) == meter.peak().bytes
    assert set(few.bytes) == set(KINDS)
    assert few.events == 299 + 299 - kept


def test_a_toggle_off_and_on_is_drawn_side_by_side_on_equal_axes(tmp_path: Path) -> None:
    ways = [
        traced(tmp_path, str(on), f"{DRY} --tiled_loss_compute {on} --tiled_loss_bytes 20000")
        for on in ("false", "true")
    ]
    given = inputs.read([path for path, _ in ways])
    chart = figure.chart(given.memory)
    assert not isinstance(chart, str)
    assert chart.origin == "predicted"
    off, on = chart.panels
    assert off.title.startswith("tiled_loss_compute False: peak ")
    assert on.title.startswith("tiled_loss_compute True: peak ")
    assert (off.x.limits, off.y.limits) == (on.x.limits, on.y.limits)
    for panel, (_, peak) in zip(chart.panels, ways, strict=True):
        areas = [mark for mark in panel.marks if isinstance(mark, Area)]
        assert [area.label for area in areas] == [*KINDS]
        assert max(areas[-1].high) * 2**20 == peak
    traces = draw_plotly.drawn(chart)["panels"][0]["data"]
    assert traces[0]["fill"] == "toself"
    main(["report", "--rows", *(str(path) for path, _ in ways), "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "memory_trace.svg").stat().st_size > 0


@pytest.mark.parametrize(
    "damage",
    [
        {"memory_of": []},
        {"at": []},
        {"at": [2]},
        {"at": [-1]},
        {"at": [0, 1]},
        {"bytes": {"parameters": [1]}},
        {"bytes": {kind: [-1] for kind in KINDS}},
        {"bytes": {kind: ["x"] for kind in KINDS}},
        {"events": float("inf")},
    ],
)
def test_damaged_files_are_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    sound = {"memory_of": {}, "events": 1, "at": [0], "bytes": {kind: [1] for kind in KINDS}}
    assert memory_trace.parsed(sound) is not None
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(sound | damage))
    with pytest.raises(ValueError, match=r"damaged.json is no trace of run"):
        inputs.read([path])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--method peer:dtensor_tp", "method = peer:dtensor_tp is not for memory_trace"),
        ("--rounds 2", "is not for rounds = 2"),
        ("--memory_trace README.md", "it is no memory over a step"),
    ],
)
def test_what_cannot_be_traced_is_refused(
    flags: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--memory_trace", str(tmp_path / "m.json"), "--out", str(tmp_path / "rows.csv")]
    line = refused_line(capsys, *CELL.split(), *files, *flags.split())
    assert reason in line
