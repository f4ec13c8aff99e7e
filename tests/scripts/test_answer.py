"""The four lines at the end of the example."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from scripts.answer import main, read

MIB = 2**20
COLUMNS = (
    *("method", "seq_len", "step_ms_p50", "round_ms_low", "round_ms_high"),
    *("comm_bytes_total", "peak_memory_bytes", "noisy"),
)
MEASURED = [
    ("tp", 64, 10.0, 9.0, 11.0, 8 * MIB, 5 * MIB, "False"),
    ("tp_sp", 64, 12.0, 11.5, 12.5, 8 * MIB, 4 * MIB, "False"),
    ("ulysses", 64, 11.5, 10.5, 12.5, 9 * MIB, 3 * MIB, "False"),
    ("tp", 128, 22.0, 21.0, 23.0, 16 * MIB, 9 * MIB, "False"),
    ("tp_sp", 128, 21.0, 19.0, 30.0, 15 * MIB, 7 * MIB, "True"),
    ("ulysses", 128, 31.0, 30.5, 32.0, 10 * MIB, 6 * MIB, "False"),
    ("ulysses", 96, 1.0, 1.0, 1.0, 1, 1, "False"),  # neither the shortest nor the longest
]
PREDICTED = [
    ("tp", 8192, 500.0, "", "", 1, 1, ""),
    ("ulysses", 8192, 400.0, "", "", 1, 1, ""),
    ("tp", 131072, 5000.0, "", "", 1, 1, ""),
    ("ulysses", 131072, 5001.0, "", "", 1, 1, ""),
]


def write(path: Path, rows: list[tuple[object, ...]], **same: object) -> str:
    fixed = {"status": "ok", "world_size": 4, "ring_parallel_size": 1, "model": "llama3-8b"}
    pd.DataFrame(rows, columns=list(COLUMNS)).assign(**fixed | same).to_csv(path, index=False)
    return str(path)


@pytest.fixture
def measured(tmp_path: Path) -> str:
    return write(tmp_path / "measured.csv", MEASURED, device="cpu")


def test_the_lines(measured: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Equal bytes name both; rounds that overlap name both; a noisy row is called so."""
    predicted = write(tmp_path / "predicted.csv", PREDICTED, world_size=8, hardware="h100-80g")
    assert main([measured, predicted]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "sends least (4 ranks, cpu): tp and tp_sp (8.0 MiB) at 64 tokens; "
        "ulysses (10.0 MiB) at 128 tokens",
        "holds least (4 ranks, cpu): ulysses (3.0 MiB) at 64 tokens; "
        "ulysses (6.0 MiB) at 128 tokens",
        "fastest (measured: 4 ranks, cpu): tp or ulysses (10 ms) at 64 tokens; "
        "tp_sp or tp (21 ms, noisy) at 128 tokens",
        "fastest (predicted: 8 ranks, h100-80g, llama3-8b): ulysses (400 ms) at 8,192 tokens; "
        "tp (5,000 ms) at 131,072 tokens",
    ]


def test_of_the_rows_the_last_on_the_most_ranks_without_a_ring_count(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    one = MEASURED[:1]
    write(path, one)
    parts = [
        pd.read_csv(path).assign(**changed)
        for changed in (
            {"step_ms_p50": 1.0},
            {"step_ms_p50": 2.0},
            {"world_size": 2, "step_ms_p50": 3.0},
            {"ring_parallel_size": 2, "step_ms_p50": 4.0},
            {"status": "error", "step_ms_p50": 5.0},
        )
    ]
    pd.concat(parts).to_csv(path, index=False)
    assert [*read(path)["step_ms_p50"]] == [2.0]


def test_no_rows_are_no_answer(
    measured: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([measured, str(tmp_path / "none.csv")]) == 1
    assert "none.csv has no row with status ok" in capsys.readouterr().err
