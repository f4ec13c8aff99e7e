"""The hardware's memory for tensors, in the figure of peak memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.hardware import profile_file
from bench.hardware.profiles import PROFILES
from bench.report import catalogue, inputs
from tests.support.paths import RESULTS
from tests.support.reports import EXAMPLE, cards_of, shipped, written


def test_the_hardware_limits_memory_where_it_is_known() -> None:
    (first, *_) = cards_of(RESULTS / "dry_runs.csv")["memory"].charts
    limits = [m for p in first.panels for m in p.marks if m.label.startswith("h100-80g has")]
    assert {y for mark in limits for y in mark.y} == {PROFILES["h100-80g"].usable_bytes / 2**30}
    misfits = [m for p in first.panels for m in p.marks if m.label.startswith("does not fit")]
    assert misfits
    (measured,) = cards_of(EXAMPLE)["memory"].charts
    assert not any("has for tensors" in label for label in measured.legend)


def test_a_users_profile_limits_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    highest = int(shipped()["peak_memory_bytes"].astype(int).max())
    small, large = tmp_path / "small.yml", tmp_path / "large.yml"
    for file, size in ((small, 2 * highest), (large, 100 * highest)):
        of = replace(PROFILES["h100-80g"], speeds=None, memory_bytes=size)
        profile_file.write(replace(of, context_bytes=0, nccl_bytes=0, workspace_bytes=0), file)
    for file in (small, large):
        dry = shipped().assign(mode="dry_run", hardware=str(file))
        rows = written(dry, tmp_path / f"{file.stem}.csv")
        given = inputs.read([rows])
        known = PROFILES | {f"{tmp_path}/./{file.name}": profile_file.find(str(file))}
        (chart,) = next(
            card.charts
            for card in catalogue.cards(given, inputs.drawable(given, known))
            if card.name == "memory"
        )
        limits = [m for p in chart.panels for m in p.marks if m.label.startswith("small.yml has")]
        if file == small:
            assert {y for mark in limits for y in mark.y} == {2 * highest / 2**20}
        else:  # too far above the bars for a line
            assert not limits
            assert f"large.yml has {100 * highest / 2**30:.4g} GiB for tensors" in chart.source
        (unknown,) = cards_of(rows)["memory"].charts
        assert not any("has for tensors" in label for label in unknown.legend)
    flags = ["report", "--rows", str(EXAMPLE), "--out", str(tmp_path / "out"), "--hardware"]
    assert main([*flags, str(tmp_path / "none.yml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "none.yml") in line
    assert not (tmp_path / "out").exists()
