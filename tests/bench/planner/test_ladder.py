"""plan --ladder: the longest sequence, toggle by toggle, its rows and its figure."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from bench import rows
from bench.__main__ import main
from bench.commands import plan_ladder
from bench.planner import ladder, savings
from bench.planner.dry_runs import DryRuns
from bench.planner.longest import search, unit_of
from bench.report import labels
from bench.report.chart import Bars
from odysseus.config.run import RunConfig
from tests.support.marks import slow
from tests.support.need_by_formula import NeedByFormula
from tests.support.reports import cards_of
from tests.support.small_node import planned_run, write_profile


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return planned_run(write_profile(tmp_path))


def climbed(run: RunConfig, dry_runs: DryRuns) -> list[ladder.Rung]:
    return [*ladder.rungs(run, lambda seq_len, need: None, dry_runs)]


@pytest.mark.parametrize("dry_runs", [NeedByFormula(), slow(DryRuns())], ids=["formula", "real"])
@pytest.mark.parametrize("method", ["tp", "ulysses"])
def test_every_rung_is_longer_by_the_toggle_that_gains_most(
    run: RunConfig, method: str, dry_runs: DryRuns
) -> None:
    run = replace(run, method=method)
    first, *others = climbed(run, dry_runs)
    assert (first.added, first.so_far, first.gain, first.run.method) == ("none", (), None, method)
    assert len(others) > 1
    for before, rung in pairwise([first, *others]):
        assert rung.so_far == (*before.so_far, rung.added)
        assert rung.gain == pytest.approx(rung.longest.seq_len / before.longest.seq_len - 1)
        assert rung.gain > 0.01
        assert rung.run == replace(
            savings.with_savings(run, rung.so_far), seq_len=rung.longest.seq_len
        )
    (second, *_) = others
    for name in savings.to_add(run):
        found = search(savings.with_savings(run, [name]), lambda seq_len, need: None, dry_runs)
        assert found.seq_len <= second.longest.seq_len * 1.01
    last = others[-1]
    for name in savings.to_add(last.run):
        longer = replace(
            savings.with_savings(last.run, [name]),
            seq_len=int(last.longest.seq_len * 1.02) // unit_of(run) * unit_of(run),
        )
        assert longer.seq_len == last.longest.seq_len or dry_runs.need(longer).limit


def test_rungs_of_a_formula(run: RunConfig) -> None:
    """40 MB of 1,000 bytes a token, then of 300; the optimizer's 60 MB; then the host is full."""
    rungs = climbed(replace(run, method="tp"), NeedByFormula())
    assert [(rung.added, rung.longest.limit) for rung in rungs] == [
        ("none", "GPU"),
        ("activation_checkpoint_cpu_offload", "GPU"),
        ("optimizer.offload", "host"),
    ]
    expected = [40_000, 40_000_000 / 300, 200_000]
    assert [rung.longest.seq_len for rung in rungs] == pytest.approx(expected, rel=0.03)


def test_as_long_as_nothing_fits_the_least_need_counts(run: RunConfig) -> None:
    """The optimizer alone takes 240 of 100 MB of one rank."""
    first, second, *others = climbed(replace(run, world_size=1, method="tp"), NeedByFormula())
    assert (first.longest.seq_len, first.longest.limit, first.longest.whole) == (0, "GPU", None)
    assert second.added == "optimizer.offload"
    assert (second.gain, second.longest.limit) == (None, "GPU")
    assert second.longest.seq_len > 0
    assert all(rung.gain for rung in others)


def test_the_verb_prints_rungs_and_writes_rows_and_a_figure(
    run: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plan_ladder, "DryRuns", NeedByFormula)
    out = tmp_path / "ladder.csv"
    flags = f"--ladder true --method ulysses --hardware {run.hardware} --world_size 4 --out {out}"
    flags += " --model.num_hidden_layers 2 --model.head_dim 32"
    assert main(["plan", *flags.split()]) == 0
    _, header, *lines, last = capsys.readouterr().out.splitlines()
    assert header.split() == ["method", "longest", "gain", "limit", "toggles", "so", "far"]
    assert len(lines) > 1
    assert last == f"{out}, {tmp_path}/ladder.png and .svg"
    kept = rows.read(out)
    assert [line.split()[1] for line in lines] == [*kept["seq_len"]]
    assert kept["ladder_toggle"][0] == "none"
    assert [line.split()[-1] for line in lines] == [*kept["ladder_toggle"]]
    assert set(kept["mode"]) == {"dry_run"}
    assert (tmp_path / "ladder.png").stat().st_size > 0
    cards = cards_of(out)
    assert not cards["longest"].charts
    (chart,) = cards["ladder"].charts
    (panel,) = chart.panels
    assert panel.title == "ulysses, 4 GPUs"
    toggles = [*kept["ladder_toggle"]]
    names = ["none", *(f"+ {labels.TOGGLE_NAMES[name]}" for name in toggles[1:])]
    assert [*panel.x.ticks.values()] == names
    (bars,) = (mark for mark in panel.marks if isinstance(mark, Bars))
    assert [size * 1024 for size in bars.size] == [int(length) for length in kept["seq_len"]]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--ladder true --objective throughput", "objective = throughput is not for a ladder"),
        ("--ladder true --map new", "ladder = true is not for a map"),
        ("--ladder true --out README.md", "without the columns"),
        ("--method tp,tpsp", "method = 'tpsp' is unknown"),
        ("--method ,", "method = ',' names none"),
        ("--method peer:dtensor_tp", "is not for this verb"),
    ],
)
def test_bad_input(
    flags: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("# A project\n\nwith, commas\n")
    assert main(["plan", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
