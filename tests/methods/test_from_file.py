"""Methods from a Python file outside this repository: runs, refusals, reports."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench import rows
from bench.__main__ import main
from bench.report import catalogue, inputs, labels
from methods import METHODS, method_of
from tests.support.paths import ROOT

SOURCE = ROOT / "tests" / "support" / "example_mlp.py"
SMALL = "--world_size 2 --seq_len 256 --steps 1 --warmup_steps 0 --model.num_hidden_layers 1"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the example as mine.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE.read_text())
    return tmp_path


def test_ranks_of_a_run_find_the_file(elsewhere: Path) -> None:
    assert main(f"run --method mine.py --out runs.csv {SMALL}".split()) == 0
    (row,) = rows.read(elsewhere / "runs.csv").to_dict("records")
    assert (row["method"], row["status"]) == ("example", "ok")
    assert int(row["comm_bytes_total"]) > 0
    for name in ("comm_bytes_total", "peak_activation_bytes", "peak_host_bytes"):
        assert row[f"theory_{name}"] == ""


def test_verify_trains_with_the_file(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"verify --method mine.py --out verify.csv {SMALL}".split()) == 0
    assert capsys.readouterr().out.startswith("example, DP 1 x SP 2")


def test_dry_runs_of_a_sweep_know_the_file(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offload = "--activation_checkpoint_cpu_offload true --optimizer.offload cpu"
    sweep = f"sweep --method [mine.py,tp] --dry_run true --out rows.csv {SMALL} {offload}".split()
    assert main(sweep) == 0
    found = rows.read(elsewhere / "rows.csv")
    assert [*found["method"]] == ["example", "tp"]
    assert int(found["peak_host_bytes"][0]) > 0
    capsys.readouterr()
    assert main(sweep) == 0
    assert "2 had rows" in capsys.readouterr().out


def test_a_plan_has_a_line_for_the_file(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = "--world_size 2 --sequence_parallel_size 2 --seq_len 1024 --model.num_hidden_layers 2"
    for methods, expected in (("all,mine.py", {*METHODS, "example"}), ("mine.py", {"example"})):
        assert main(f"plan --objective throughput {small} --method {methods}".split()) == 0
        named = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
        assert named & {*METHODS, "example"} == expected
    assert main(["plan", "--method", "mine.py", "--map", "map"]) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "is not a file"),
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "has no METHOD"),
        ("METHOD = 'tp'", "METHOD is a str"),
        ("from methods.tp import METHOD", "name 'tp' of a method of this project"),
        (
            "from dataclasses import replace\nfrom methods.tp import METHOD as tp\n"
            "METHOD = replace(tp, name='my method')",
            "the name 'my method'",
        ),
    ],
    ids=["no file", "import", "exit", "syntax", "no METHOD", "type", "taken", "name"],
)
@pytest.mark.parametrize("verb", ["run", "sweep"])
def test_a_file_without_a_method_is_refused(
    verb: str,
    text: str | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "bad.py").write_text(text)
    assert main([verb, "--method", "bad.py", "--out", "rows.csv"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m bench {verb}: method = bad.py")
    assert reason in line
    assert "; valid: " in line
    assert not (tmp_path / "rows.csv").exists()


def test_a_file_is_run_once_and_may_define_dataclasses(tmp_path: Path) -> None:
    file = tmp_path / "with_dataclass.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass, replace\n"
        "from methods.tp import METHOD as tp\n"
        "@dataclass\nclass Sizes:\n    n: int = 1\n"
        "METHOD = replace(tp, name='mine')\n"
    )
    assert method_of(str(file)).name == "mine"
    assert method_of(str(file)) is method_of(str(file))


def test_a_report_draws_rows_without_a_formula(tmp_path: Path) -> None:
    shipped = pd.read_csv(ROOT / "results/example.csv", dtype=str, keep_default_na=False)
    plain = shipped[(shipped["ring_parallel_size"] == "1") & (shipped["world_size"] == "2")]
    outside = plain[plain["method"] == "tp"].assign(method="example", theory_comm_bytes_total="")
    pd.concat([plain, outside]).to_csv(tmp_path / "rows.csv", index=False)
    given = inputs.read([tmp_path / "rows.csv"])
    data = inputs.drawable(given)
    assert labels.layouts_of(data)[-1] == "example"
    assert [note for note in given.notes if note.startswith("example is a method from outside")]
    cards = {card.name: card for card in catalogue.cards(given, data)}
    (panel,) = cards["traffic"].charts[0].panels
    bars = [place for place, name in panel.x.ticks.items() if name == "example"]
    (rule,) = (mark for mark in panel.marks if mark.label == "formula (total)")
    assert len(bars) == outside["seq_len"].nunique()
    starts = zip(rule.x[::3], rule.y[::3], strict=True)
    assert [x + 0.5 for x, y in starts if y != y] == bars


def test_looks_of_methods_from_outside() -> None:
    style = labels.style_of("example")
    assert style not in [labels.style_of(name) for name in METHODS]
    assert style != labels.style_of("ring 2")
    assert labels.style_of("example x ring 2")["color"] == style["color"]
    assert labels.style_of("spring x ring 2")["color"] == labels.style_of("spring")["color"]
