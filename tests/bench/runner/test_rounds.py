"""Rounds of a cell: measured in turn with other methods, merged into one row, and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import rows
from bench.__main__ import main
from bench.runner import launch, rounds
from bench.runner.resume import Resumed
from odysseus.config.run import RunConfig
from odysseus.io.files import NotSaved
from tests.support.launched import SMALL, one_row

RUN = RunConfig(method="tp", seq_len=1000, rounds=3)
GRID = f"sweep {SMALL} --method [tp,ulysses] --seq_len [64,128] --world_size 1"


def outcome(*times_ms: float, load: float = 0.0, peak: float | None = None) -> dict[str, Any]:
    parts = {rounds.TIMES: [*times_ms], rounds.PEAK: peak, rounds.CORES: 2}
    return {"status": "ok", "other_load": load, "loss_last": times_ms[0]} | parts


def test_methods_take_turns() -> None:
    """Cells are together if they differ in their method alone; the order is that of their first."""
    lengths = [replace(RUN, seq_len=length) for length in (64, 128)]
    cells = [replace(run, method=name) for name in ("tp", "ulysses") for run in lengths]
    groups = [[(run.method, run.seq_len) for run in group] for group in rounds.alternating(cells)]
    assert groups == [[("tp", 64), ("ulysses", 64)], [("tp", 128), ("ulysses", 128)]]
    for once in ({"rounds": 1}, {"dry_run": True}):
        alone = [replace(run, **once) for run in cells]
        assert [*rounds.alternating(alone)] == [[run] for run in alone]


def test_a_row_has_the_times_of_all_rounds() -> None:
    """Medians of the rounds are 20, 21 and 20.5 ms; the other columns are those of the first."""
    parts = [outcome(19, 20, 40, peak=1e12), outcome(21, 21, 21), outcome(20, 20.5, 22)]
    row = rounds.merged(parts, RUN)
    assert (row["step_ms_p50"], row["round_ms_low"], row["round_ms_high"]) == (21, 20, 21)
    assert row["step_ms_p20"] == pytest.approx(20)
    assert row["step_ms_p80"] == pytest.approx(21.4)
    assert row["tokens_per_s"] == pytest.approx(1000 / 0.021)
    assert (row["rounds"], row["steps"], row["warmup_steps"]) == (3, RUN.steps, RUN.warmup_steps)
    assert row["loss_last"] == 19
    assert row["noisy"] is False
    assert row["mfu"] == pytest.approx(row["model_tflops_per_gpu"])
    assert not {rounds.TIMES, rounds.PEAK, rounds.CORES} & row.keys()


def test_without_a_data_sheet_there_is_no_mfu() -> None:
    row = rounds.merged([outcome(20)], RUN)
    assert "mfu" not in row
    assert row["model_tflops_per_gpu"] > 0


@pytest.mark.parametrize(
    ("parts", "is_noisy"),
    [
        ([outcome(20), outcome(22)], False),
        ([outcome(20), outcome(22.1)], True),
        ([outcome(20, load=0.2), outcome(20, load=0.2)], False),
        ([outcome(20, load=0.1), outcome(20, load=0.4)], True),
        ([outcome(20)], False),
        ([outcome(20, load=0.3)], True),
    ],
)
def test_a_row_is_noisy(parts: list[dict[str, Any]], is_noisy: bool) -> None:
    """Over a tenth between rounds, or a tenth of the two cores busy with something else."""
    assert rounds.merged(parts, RUN)["noisy"] is is_noisy


def test_one_round_has_no_range() -> None:
    assert "round_ms_low" not in rounds.merged([outcome(20)], RUN)


def test_a_failed_round_is_the_row() -> None:
    failed = {"status": "timeout", "error": "late"}
    assert rounds.merged([outcome(20), failed], RUN) == failed


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Method and length of every round in order; ulysses fails at 128 tokens."""
    done: list[tuple[str, int]] = []

    def run_round(run: RunConfig, is_first: bool) -> dict[str, Any]:
        done.append((run.method, run.seq_len))
        if done[-1] == ("ulysses", 128):
            return {"status": "error", "error": "no"}
        return outcome(20.0 * len(done))

    monkeypatch.setattr(launch, "run_round", run_round)
    return done


def test_a_sweep_goes_round_by_round(
    measured: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    sweep = [*GRID.split(), "--rounds", "3", "--out", str(out)]
    assert main(sweep) == 1
    in_turn = [("tp", 64), ("ulysses", 64)] * 3
    assert measured == [*in_turn, ("tp", 128), ("ulysses", 128), ("tp", 128), ("tp", 128)]
    table = rows.read(out)
    assert list(table["rounds"]) == ["3", "3", "", "3"]
    assert list(table["noisy"]) == ["True", "True", "", "True"]
    assert list(table["status"]) == ["ok", "ok", "error", "ok"]
    assert main(sweep) == 0
    assert "4 cells: 4 had rows, 0 ok, 0 failed" in capsys.readouterr().out


def test_more_rounds_or_steps_mean_measuring_again(
    measured: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.csv"
    sweep = f"sweep {SMALL} --method tp --seq_len 64 --world_size 1 --out {out}".split()
    for flags, again in (
        ("--steps 5 --rounds 2", True),
        ("--steps 5 --rounds 1", False),
        ("--steps 4 --rounds 2", False),
        ("--steps 6 --rounds 2", True),
        ("--steps 5 --rounds 3", True),
        ("--steps 6 --rounds 3", True),
    ):
        before = len(measured)
        assert main([*sweep, *flags.split()]) == 0
        assert (len(measured) > before) == again, flags
        said = capsys.readouterr()
        assert f"1 cells: {1 - again} had rows" in said.out
        assert ("measured again, with more rounds or steps" in said.err) == (again and before > 0)


def test_rows_of_earlier_versions_count_as_one_round(
    measured: list[tuple[str, int]], tmp_path: Path
) -> None:
    """They do not say how many steps they have."""
    out = tmp_path / "rows.csv"
    sweep = f"sweep {SMALL} --method tp --seq_len 64 --world_size 1 --out {out}".split()
    assert main(sweep) == 0
    rows.read(out).drop(columns=["rounds", "steps"]).to_csv(out, index=False)
    assert main([*sweep, "--steps", "99"]) == 0
    assert len(measured) == 1
    assert main([*sweep, "--rounds", "2"]) == 0
    assert len(measured) == 3


def test_a_joined_sweep_goes_round_by_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []

    def measure(run: RunConfig, device: torch.device, meters: bool) -> dict[str, Any]:
        assert meters == ((run.method, run.seq_len) not in done)
        done.append((run.method, run.seq_len))
        return outcome(20)

    monkeypatch.setattr(launch, "measure_in_group", measure)
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    out = tmp_path / "rows.csv"
    assert main([*GRID.split(), "--rounds", "2", "--out", str(out)]) == 0
    assert done == [*[("tp", 64), ("ulysses", 64)] * 2, *[("tp", 128), ("ulysses", 128)] * 2]
    assert list(rows.read(out)["rounds"]) == ["2"] * 4


def test_a_run_has_its_rounds(tmp_path: Path) -> None:
    """Measured: two rounds of three steps."""
    out = tmp_path / "rows.csv"
    flags = f"run {SMALL} --world_size 1 --seq_len 64 --steps 3 --warmup_steps 1 --rounds 2"
    assert main([*flags.split(), "--out", str(out)]) == 0
    row = one_row(out)
    assert (row["rounds"], row["steps"], row["warmup_steps"]) == ("2", "3", "1")
    low, high = float(row["round_ms_low"]), float(row["round_ms_high"])
    assert 0 < low <= float(row["step_ms_p50"]) <= high
    assert float(row["other_load"]) >= 0
    assert row["noisy"] in ("True", "False")
    assert row["mfu"] == ""


def test_weights_of_several_rounds_are_not_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"run {SMALL} --world_size 1 --rounds 2 --save {tmp_path / 'model'}"
    assert main([*flags.split(), "--out", str(tmp_path / "rows.csv")]) == 2
    assert "is not for rounds = 2" in capsys.readouterr().err


def test_a_file_that_is_damaged_between_two_cells_ends_the_sweep(
    measured: list[tuple[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second cell is not measured: its row could not be added."""
    out, append = tmp_path / "rows.csv", rows.append

    def damaged(path: Path, row: dict[str, Any]) -> None:
        append(path, row)
        path.write_text("name,colour\nsea,blue\n")

    monkeypatch.setattr(rows, "append", damaged)
    assert main([*GRID.split(), "--seq_len", "64", "--out", str(out)]) == 1
    assert measured == [("tp", 64)]
    assert "it is a file without the columns" in capsys.readouterr().err
    assert out.read_text() == "name,colour\nsea,blue\n"


FOREIGN = "name,colour\nsea,blue\n"


def test_a_file_that_is_damaged_while_it_is_read_again_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "rows.csv"
    resumed = Resumed(out, retry_failed=False)
    monkeypatch.setattr(rows, "check_writable", lambda path: path.write_text(FOREIGN))
    with pytest.raises(OSError, match="it is without the columns"):
        resumed.has_now(RUN)


def test_no_row_is_added_to_a_file_of_another_program(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    out.write_text(FOREIGN)
    with pytest.raises(NotSaved, match="it is without the columns"):
        rows.append(out, rows.identity(RUN) | {"status": "ok", "error": ""})
    assert out.read_text() == FOREIGN
