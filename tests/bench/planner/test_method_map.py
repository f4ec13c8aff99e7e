"""The map of methods: its cells, its file, its figure."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.__main__ import main
from bench.hardware import profiles
from bench.planner import fewest_bytes, map_file, method_map, ranking
from bench.planner.map_file import Tried
from bench.report import catalogue, inputs
from bench.report.chart import Bars, Line
from bench.report.charts import method_map as map_chart
from bench.theory import traffic as theory_traffic
from methods import METHODS
from odysseus.config.run import ModelOptions, RunConfig
from tests.support.paths import ROOT
from tests.support.small_runs import LLAMA3_ON_4_GPUS

SHIPPED = ROOT / "results" / "map_llama3-8b_h100.csv"
SHALLOW = replace(LLAMA3_ON_4_GPUS, model=replace(LLAMA3_ON_4_GPUS.model, num_hidden_layers=3))


def test_layouts_keep_the_sequence_axis_in_a_node_or_over_all() -> None:
    run = replace(SHALLOW, world_size=16)
    found = {(r.sequence_size, r.ring_parallel_size) for r in method_map.layouts(run)}
    assert found == {(8, 1), (8, 2), (16, 1)}


def test_a_tensor_axis_takes_ranks_of_the_sequence_axis() -> None:
    run = replace(SHALLOW, world_size=16)
    tried = Tried(["tp_sp", "ulysses"], [1, 2, 8])
    found = {
        (r.method, r.tensor_parallel_size, r.sequence_size, r.ring_parallel_size)
        for r in method_map.layouts(run, tried)
        if r.tensor_parallel_size > 1
    }
    assert found == {
        *(("ulysses", 2, 4, 1), ("ulysses", 2, 4, 2)),
        *(("ulysses", 2, 8, 1), ("ulysses", 8, 2, 1)),
    }


def test_a_cell_is_the_fastest_of_its_layouts() -> None:
    run = replace(SHALLOW, world_size=2, seq_len=8192)
    found = ranking.ranked(method_map.layouts(run), lambda line: None)
    row = method_map.cell(run, found)
    assert row["method"] == found[0].run.method
    assert row["tokens_per_s_per_gpu"] == max(c.tokens_per_s_per_gpu for c in found)
    assert row["next_slower"] >= 0
    assert method_map.cell(run, [])["method"] == method_map.NOTHING


def test_the_files_and_cells_that_exist_already(tmp_path: Path) -> None:
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


def test_a_map_has_no_second_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = f"--model.name_or_path llama3-8b --tensor_parallel_size 2 --map {tmp_path / 'map'}"
    assert main(["plan", "--objective", "throughput", "--method", "ulysses", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tensor_parallel_size = 2 is not for a map" in line
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("sizes", ["[]", "[2]", "[1,-2]"])
def test_sizes_of_a_tensor_axis_that_cannot_be(
    sizes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--map {tmp_path / 'map'} --map_tensor_parallel_sizes {sizes}"
    assert main(["plan", *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"map_tensor_parallel_sizes = {sizes.replace(',', ', ')}; valid: 1, and larger" in line
    assert not [*tmp_path.iterdir()]


def test_a_map_of_pairs(tmp_path: Path) -> None:
    flags = "--model.name_or_path llama3-8b --model.num_hidden_layers 3 --vocab_parallel auto"
    flags += f" --map {tmp_path / 'map'} --map_world_sizes [4] --map_seq_lens [8192]"
    flags += " --method ulysses,ulysses+tp_sp --map_tensor_parallel_sizes [1,2]"
    assert main(["plan", *flags.split()]) == 0
    data = pd.read_csv(tmp_path / "map.csv")
    assert data["tensor_parallel_size"].tolist() == [1]
    run, tried = map_file.run_of(data, profiles.PROFILES), map_file.tried_of(data)
    assert (run.vocab_parallel, tried) == ("auto", (["ulysses", "ulysses+tp_sp"], [1, 2]))
    (chart,) = map_card(data).charts
    assert set(chart.legend) == set(data["method"])


def test_a_map_of_some_methods_is_another(tmp_path: Path) -> None:
    out = tmp_path / "map.csv"
    tried = Tried(["ulysses", "tp"])
    assert {run.method for run in method_map.layouts(SHALLOW, tried)} == {*tried.methods}
    assert map_file.identity(SHALLOW, tried)["flags"] == "method=tp,ulysses"
    known = map_file.identity(SHALLOW, tried) | {"method": "tp"}
    pd.DataFrame([known]).to_csv(out, index=False)
    assert method_map.Cells([SHALLOW], out, Tried(["tp", "ulysses"])).tasks == []
    with pytest.raises(ValueError, match="flags = method=tp,ulysses, not "):
        method_map.Cells([SHALLOW], out)


def test_lines_are_where_the_fewest_bytes_change() -> None:
    run = replace(SHALLOW, world_size=8)
    (first, before), (at, after), *_ = fewest_bytes.stretches(run, 1024, 2**20)
    assert first == 1024

    def least(length: float) -> str:
        sizes = {m: theory_traffic.line(replace(run, method=m)) for m in METHODS}
        return min(sizes, key=lambda m: sizes[m][0] * int(length) + sizes[m][1])

    assert least(at * 0.95) == before != after == least(at * 1.05)


def test_with_auto_each_method_has_the_cut_that_sends_least() -> None:
    run = replace(SHALLOW, world_size=8, vocab_parallel="auto", dtype="bf16")
    names = ["tp", "ulysses", "ulysses+tp_sp", "peer:megatron_tp_sp"]
    found = fewest_bytes.stretches(run, 1024, 2**22, names)
    assert [name for _, name in found] == ["tp", "ulysses+tp_sp", "ulysses"]

    def least(length: float) -> str:
        length = int(length) // 8 * 8
        runs = [replace(run, method=name, seq_len=length) for name in names[:3]]
        return min(runs, key=lambda one: theory_traffic.step_traffic(one).total).method

    for (_, before), (at, after) in pairwise(found):
        assert (least(at * 0.98), least(at * 1.02)) == (before, after)


def test_a_files_own_run_has_the_lines_of_its_map() -> None:
    shipped = pd.read_csv(SHIPPED)
    run = map_file.run_of(shipped, profiles.PROFILES)
    assert (run.model.label, run.dtype, run.hardware) == ("llama3-8b", "bf16", "h100-80g")
    expected = map_chart.fewest_of(run, shipped)
    (chart,) = map_card(shipped).charts
    lines = [mark.x[0] for mark in chart.panels[0].marks if isinstance(mark, Line)]
    assert len(lines) == sum(len(of) - 1 for of in expected.values()) > 0
    assert all(0 < x < 5 for x in lines)
    half = shipped.assign(model="llama3-8b(num_hidden_layers=3)")
    assert map_file.run_of(half, profiles.PROFILES).architecture.num_hidden_layers == 3


def test_the_columns_of_a_map_give_its_run_back() -> None:
    run = replace(
        RunConfig(
            dry_run=True, hardware="h100-80g(gpus_per_node=4)", dtype="bf16", micro_batch_size=2
        ),
        model=ModelOptions(name_or_path="llama3-8b", use_qk_norm=True, rope_theta=1e6),
        tiled_mlp_compute=True,
        activation_checkpointing=True,
        parameter_offload="cpu",
        vocab_parallel="head",
        ring_order="contiguous",
        zero_prefetch=False,
        host_memory_limit_bytes=10**11,
    )
    columns = map_file.identity(run)
    found = map_file.run_of(pd.DataFrame([columns]).replace("", None), profiles.PROFILES)
    assert map_file.identity(replace(found, seq_len=run.seq_len)) == columns
    assert found.model.overrides == run.model.overrides


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("model", "../../etc", "model '../../etc' is not known"),
        ("model", "llama3-8b(name_or_path=x)", "name_or_path is no size"),
        ("model", "llama3-8b(num_hidden_layers=--config=x)", "num_hidden_layers"),
        ("hardware", "some.yml", "hardware 'some.yml' is not known"),
        ("hardware", "h100-80g(speed=1)", "hardware 'h100-80g(speed=1)' is not known"),
        ("dtype", "--config=some.yml", "dtype"),
        ("tiled_mlp_compute", None, "no column tiled_mlp_compute"),
        ("flags", "method=some/file.py", "method 'some/file.py' is not known"),
        ("flags", "method=peer:nobody", "method 'peer:nobody' is not known"),
        ("flags", "map_tensor_parallel_sizes=two", "two"),
        ("flags", "zero_prefetch=perhaps", "zero_prefetch = 'perhaps' is no value"),
        ("flags", "no_such=1", "it is of other flags too: no_such"),
        ("flags", "router_load=some/file", "it is of other flags too: router_load"),
        ("flags", "data.path=/a b", "it is of other flags too: b, data.path"),
        ("flags", "model.implementation=transformers", "other flags too: model.implementation"),
        ("flags", "world_size=9", "it is of other flags too: world_size"),
    ],
)
def test_a_map_of_an_unknown_run_has_no_lines(
    column: str, value: str | None, expected: str
) -> None:
    shipped = pd.read_csv(SHIPPED)
    changed = shipped.drop(columns=column) if value is None else shipped.assign(**{column: value})
    card = map_card(changed)
    (note,) = card.notes
    assert note.startswith("name: who sends the fewest bytes is not drawn: ")
    assert expected in note
    (chart,) = card.charts
    assert not any(isinstance(mark, Line) for mark in chart.panels[0].marks)


def test_a_file_with_many_methods_and_cells_twice_is_drawn_once() -> None:
    shipped = pd.read_csv(SHIPPED)
    names = [f"name{number}" for number in range(len(shipped))]
    (chart,) = map_card(pd.concat([shipped.assign(method=names), shipped])).charts
    squares = [mark for mark in chart.panels[0].marks if isinstance(mark, Bars)]
    assert sum(len(mark.at) for mark in squares) == len(shipped)
    assert {mark.label for mark in squares} == set(shipped["method"])


def map_card(cells: pd.DataFrame) -> catalogue.Card:
    given = inputs.ReportInputs(pd.DataFrame(), maps={"name": cells})
    return catalogue._maps(given, profiles.PROFILES)


def test_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--map", "/proc/version/map", "--world_size", "8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "map = /proc/version/map.csv: it cannot be written" in line


@pytest.mark.parametrize(
    "change",
    [
        {"zero_prefetch": False},
        {"ring_order": "contiguous"},
        {"ulysses_head_chunks": 2},
        {"host_memory_limit_bytes": 10**11},
        {"optimizer": replace(SHALLOW.optimizer, type="sgd")},
    ],
)
def test_a_map_of_other_flags_is_another(change: dict[str, Any], tmp_path: Path) -> None:
    other = replace(SHALLOW, **change)
    assert map_file.identity(SHALLOW)["flags"] == ""
    assert next(iter(change)) in map_file.identity(other)["flags"]
    out = tmp_path / "map.csv"
    known = pd.DataFrame([map_file.identity(SHALLOW) | {"method": "tp"}])
    known.to_csv(out, index=False)
    cells = method_map.Cells([SHALLOW], out)
    assert (len(cells.known), cells.tasks) == (1, [])
    with pytest.raises(ValueError, match=r"flags = , not .*the same flags"):
        method_map.Cells([other], out)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--map_seq_lens []", "map has no cells"),
        ("--map_world_sizes [3] --map_seq_lens [8192]", "world_size = 3, seq_len = 8192 can run: "),
        ("--out rows.csv", "out = rows.csv is not for a map"),
    ],
)
def test_cells_that_cannot_run(
    flags: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--map", str(tmp_path / "map"), *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert not list(tmp_path.glob("*.csv"))


def killed(_: RunConfig) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_of_the_pool_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ranking, "fitting", killed)
    flags = "--map_seq_lens [8192] --map_world_sizes [8]"
    command = ["plan", "--map", str(tmp_path / "map"), *flags.split()]
    assert main(command, may_fork=True) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "terminated abruptly" in line
