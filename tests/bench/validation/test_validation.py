"""Predictions of published step times: reading rows, micro steps, replicas, and the verb."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from bench import rows
from bench.__main__ import main
from bench.commands import validate
from bench.simulator import interval, predict, target
from bench.validation import errors, prediction, published
from bench.validation.published import COLUMNS, Published
from odysseus.config.run import RunConfig
from tests.support.paths import RESULTS, ROOT

SETTINGS = (
    "--method tp_sp --model.name_or_path llama3-8b --model.num_hidden_layers 2 --world_size 4 "
    "--seq_len 8192 --dry_run true --dtype bf16 --hardware h100-80g"
)
ROW = dict.fromkeys(COLUMNS, "") | {
    "source": "a paper",
    "unit": "s",
    "published": "0.5",
    "settings": SETTINGS,
}


def write(path: Path, *changed: dict[str, str]) -> Path:
    """Write a file of published rows, each with some other columns."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ROW | change for change in changed)
    return path


def read(tmp_path: Path, *changed: dict[str, str]) -> list[Published]:
    return published.read(write(tmp_path / "rows.csv", *changed), validate._run)


def test_a_row_is_a_run_and_its_seconds(tmp_path: Path) -> None:
    alone, several = read(
        tmp_path,
        {},
        {"unit": "tokens/s/GPU", "published": "4096", "replicas": "6", "zero": "1"},
    )
    assert (alone.run.method, alone.run.seq_len) == ("tp_sp", 8192)
    assert (alone.step_s, alone.gpus) == (0.5, 4)
    # 8,192 tokens on four GPUs; each of six replicas has its own.
    assert (several.step_s, several.gpus, several.zero) == (0.5, 24, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"published": "fast"}, "published = 'fast' s; valid: a number in s or tokens/s/GPU"),
        ({"unit": "h"}, "published = '0.5' h; valid: a number in s or tokens/s/GPU"),
        ({"replicas": "two"}, "replicas = 'two'; valid: a whole number"),
        ({"zero": "3"}, "replicas = 1, zero = 3; valid: 1 or more, and 0 or 1"),
        ({"settings": "--method tp"}, "settings have no --dry_run true or no --hardware"),
        ({"settings": "--method tpp"}, "method = 'tpp' is unknown; valid:"),
        ({"settings": "--metod tp"}, "metod"),
    ],
)
def test_bad_rows(
    change: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(tmp_path / "rows.csv", {}, change), tmp_path / "out.csv"
    assert main(["validate", "--rows", str(path), "--out", str(out)]) == 2
    shown = capsys.readouterr().err
    assert f"rows = {path}, line 3: " in shown
    assert message in shown
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "No columns"), ("a,b\n", "has no columns ['source'"), (None, "No such file")],
)
def test_a_file_of_something_else(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=r"rows = .*valid: ") as refused:
        published.read(path, validate._run)
    assert message in str(refused.value)


def test_micro_steps_add_up(tmp_path: Path) -> None:
    """A step of four, from steps of one and two, is that of its own dry run."""
    (row,) = read(tmp_path, {"settings": f"{SETTINGS} --gradient_accumulation_steps 4"})
    found = predict.timeline(row.run, predict.count(row.run))
    assert found
    assert prediction.steps_s([row]) == [pytest.approx(found.step_s, rel=2e-3)]


def test_replicas_add_what_they_send(tmp_path: Path) -> None:
    """Two replicas in a node hide their reductions behind backward; sixteen on eight nodes do not.
    With ZeRO-1 each updates its share of the weights, and all gather them."""
    (alone,) = read(tmp_path, {})
    two, sharded, many = (
        replace(alone, replicas=copies, zero=zero) for copies, zero in ((2, 0), (2, 1), (16, 0))
    )
    step = prediction.step_of(prediction.one_micro_step(alone.run))
    whole = step.micro_s + step.once_s
    assert prediction.with_replicas(alone, step) == whole
    assert prediction.with_replicas(two, step) == whole
    block = 4096 * (4096 * 2 + 1024 * 2 + 14336 * 3) + 2 * 4096
    elements = (2 * block + 2 * 128256 * 4096 + 4096) / 4
    clock = target.clock(replace(alone.run, world_size=8))
    assert clock
    (rate, *_) = (link.points[-1][1] for link in clock.speeds.links if not link.collective)
    gathered_s = prediction.with_replicas(sharded, step) - step.micro_s - step.once_s / 2
    assert gathered_s == pytest.approx(2 * elements / 2 / rate, rel=0.1)
    assert prediction.with_replicas(many, step) > whole


def test_rows_with_the_same_micro_step_share_dry_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[int] = Counter()

    def step_s(run: RunConfig) -> float:
        accumulated = run.gradient_accumulation_steps
        counted[accumulated] += 1
        return 1.0 + accumulated

    monkeypatch.setattr(prediction, "_step_s", step_s)
    accumulated = (f"{SETTINGS} --gradient_accumulation_steps {number}" for number in (1, 3, 8))
    found = prediction.steps_s(read(tmp_path, *({"settings": text} for text in accumulated)))
    assert found == [2, 4, 9]
    assert counted == {1: 1, 2: 1}
    counted.clear()
    assert prediction.steps_s(read(tmp_path, {}, {})) == [2, 2]
    assert counted == {1: 1}


def test_the_verb_predicts_each_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path / "rows.csv",
        {},
        {"source": "another paper", "settings": SETTINGS.replace("8192", "4096")},
    )
    out = tmp_path / "out.csv"
    arguments = ["validate", "--rows", str(path), "--out", str(out)]
    assert main([*arguments, "--only", "another"]) == 0
    assert "1 rows: 0 had predictions" in capsys.readouterr().out
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "2 rows: 1 had predictions" in shown
    assert "farthest off:" in shown
    assert {path.name for path in tmp_path.glob("out.*")} == {"out.csv", "out.png", "out.svg"}
    table = rows.read(out)
    assert [*table.columns] == [*validate.COLUMNS]
    assert len(table) == 2
    for row in table.to_dict("records"):
        ratio = float(row["predicted_s"]) / float(row["published_s"])
        assert float(row["error"]) == pytest.approx(ratio - 1)
        assert (row["mode"], row["gpu"]) == ("dry_run", "h100-80g")
    monkeypatch.setattr(prediction, "_step_s", None)  # nothing is predicted again
    figure = out.with_suffix(".svg").read_text()
    assert main([*arguments, "--only", "another"]) == 0
    assert out.with_suffix(".svg").read_text() == figure  # it has all rows of the file
    assert main([*arguments, "--only", "a book"]) == 2
    assert "only = 'a book' is in no source" in capsys.readouterr().err


def test_other_speeds_are_another_prediction(tmp_path: Path) -> None:
    one, other = read(tmp_path, {}, {"settings": f"{SETTINGS} --hardware.issue_s 1e-4"})
    assert prediction.digest(one.run) != prediction.digest(other.run)


def test_the_summary_counts_by_group() -> None:
    table = pd.DataFrame(
        {
            "error": [0.1, -0.1, 0.3] * 4,
            "gpu": ["h100-80g"] * 6 + ["a100-80g"] * 6,
            "source": "a paper",
            "seq_len": [4096] * 9 + [131072] * 3,
            "tokens_per_gpu": 4096,
            "published_s": range(1, 13),
            "predicted_s": range(1, 13),
        }
    )
    lines = {line["rows"]: line for line in errors.summary(table).to_dict("records")}
    assert [*lines] == [
        *("all", "h100-80g", "a100-80g", "up to 8,192 tokens", "up to 524,288 tokens"),
    ]
    assert lines["all"] == {
        "rows": "all",
        "number": "12",
        "median off": "10.0%",
        "bias": "+10.0%",
        "10 %": "-10.0%",
        "90 %": "+30.0%",
        "Spearman": "1.000",
    }
    assert lines["a100-80g"]["Spearman"] == ""


def test_the_intervals_are_those_of_the_shipped_rows() -> None:
    found = errors.intervals(pd.read_csv(RESULTS / "validation.csv")).to_dict("records")
    assert {line["kind"]: (round(line["low"], 2), round(line["high"], 2)) for line in found} == (
        interval.FACTORS
    )
    assert sum(line["rows"] for line in found) > 300
    assert min(line["rows"] for line in found) >= 10


def share_inside(fitted: pd.DataFrame, judged: pd.DataFrame) -> float:
    """Return the share of some published steps that lie in the intervals made of others."""
    lines = errors.intervals(fitted).to_dict("records")
    factors = {line["kind"]: (line["low"], line["high"]) for line in lines}
    kinds, ratios = errors.kinds_of(judged), judged["published_s"] / judged["predicted_s"]
    known = [(factors[k], ratio) for k, ratio in zip(kinds, ratios, strict=True) if k in factors]
    assert len(known) > 0.9 * len(judged)
    return sum(low <= ratio <= high for (low, high), ratio in known) / len(known)


@pytest.mark.parametrize("first", [0, 1])
def test_four_of_five_published_steps_lie_in_their_interval(first: int) -> None:
    """Intervals of every second row, judged on the others."""
    table = pd.read_csv(RESULTS / "validation.csv")
    assert 0.7 <= share_inside(table[first::2], table[1 - first :: 2]) <= 0.9


def test_the_page_says_how_few_rows_of_others_lie_in_intervals() -> None:
    """Models and programs are left out as a whole, as their rows are much alike."""
    table = pd.read_csv(RESULTS / "validation.csv")
    sizes = table["settings"].str.extract(r"--model.hidden_size (\d+)")[0].fillna("")
    shares = [share_inside(table[sizes != of], table[sizes == of]) for of in ("2048", "3072", "")]
    page = " ".join((ROOT / "docs/validation.md").read_text().split())
    said = "hold {:.0%} of the rows of nanotron's 1B models, {:.0%} of its 3B models, and {:.0%} of"
    assert said.format(*shares).replace("%", " %") in page


@pytest.mark.parametrize(
    ("nodes", "tokens", "kind"),
    [
        *((1, 2047, (0, 0)), (1, 2048, (0, 1)), (1, 8191, (0, 1)), (1, 8192, (0, 2))),
        *((2, 1, (1, 0)), (4, 1, (1, 0)), (5, 1, (2, 0)), (16, 1, (2, 0)), (17, 1, (3, 0))),
    ],
)
def test_the_kind_of_a_run(nodes: int, tokens: float, kind: tuple[int, int]) -> None:
    assert interval.kind(nodes, tokens) == kind


def test_the_interval_of_a_predicted_row(tmp_path: Path) -> None:
    run = RunConfig(world_size=8, seq_len=8192, hardware="h100-80g", dry_run=True, dtype="bf16")
    low, high = interval.FACTORS[0, 0]
    expected = {"step_ms_low": 50 * low, "step_ms_high": 50 * high}
    assert interval.columns(run, 50.0) == expected
    # Overridden fields are of the same profile, and a replica's samples are its own.
    other = replace(run, hardware="h100-80g(issue_s=1e-05)", micro_batch_size=8)
    assert interval.columns(other, 1.0)["step_ms_low"] == interval.FACTORS[0, 2][0]
    # No step was published of so many tokens on so many nodes.
    wide = replace(run, world_size=256, sequence_parallel_size=8, seq_len=131072)
    assert interval.columns(wide, 1.0)["step_ms_high"] == interval.FACTORS[3, 1][1]
    profile = tmp_path / "mine.yml"
    assert main(["hardware", "h100-80g", "--out", str(profile)]) == 0
    assert interval.columns(replace(run, hardware=str(profile)), 1.0) == {}


def test_every_shipped_row_is_a_run_and_has_a_prediction() -> None:
    given = published.read(RESULTS / "published.csv", validate._run)
    assert len(given) > 300
    known = validate._known(RESULTS / "validation.csv")
    lacks = {row.settings for row in given if validate._key(row) not in known}
    assert not lacks, "predict them again: python -m bench validate"
