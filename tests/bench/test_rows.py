"""Rows: many writers append them whole, and they are read back as written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import rows
from bench.hardware import profile_file, profiles
from odysseus.config.option_group import flags_of
from odysseus.config.run import ModelOptions, RunConfig
from tests.support.ranks import SERVER


def _append(path: Path, first: int) -> None:
    for seed in range(first, first + 5):
        rows.append(path, rows.identity(RunConfig(seed=seed)) | {"status": "ok"})


def test_many_writers_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    writers = [SERVER.Process(target=_append, args=(path, 5 * n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(map(int, rows.read(path)["seed"])) == list(range(20))
    assert [p.name for p in tmp_path.iterdir() if p.suffix not in (".csv", ".lock")] == []


def test_a_row_survives_the_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    run = RunConfig(model=ModelOptions(num_hidden_layers=2, use_qk_norm=True))
    row = rows.identity(run) | {"status": "error", "error": 'rank 1: "a, b"', "mfu": 0.1 + 0.2}
    rows.append(path, row)
    rows.append(path, row)
    table = rows.read(path)
    assert tuple(table.columns) == rows.COLUMNS
    assert list(table["error"]) == [row["error"]] * 2
    assert list(table["mfu"]) == ["0.30000000000000004"] * 2
    assert rows.keys(path) == {rows.key(row)}
    assert rows.keys(path, only_ok=True) == set()


def test_every_field_that_changes_the_numbers_changes_the_key() -> None:
    base = rows.key(rows.identity(RunConfig()))
    changed = [
        RunConfig(method="tp"),
        RunConfig(model=ModelOptions(num_hidden_layers=2)),
        RunConfig(seq_len=2048),
        RunConfig(world_size=2),
        RunConfig(world_size=2, sequence_parallel_size=1),
        RunConfig(world_size=2, ring_parallel_size=2),
        RunConfig(world_size=2, ring_parallel_size=2, ring_order="contiguous"),
        RunConfig(world_size=2, ring_parallel_size=2, ring_backend="allgather"),
        RunConfig(axis_order="dp-sp-ring"),
        RunConfig(micro_batch_size=2),
        RunConfig(gradient_accumulation_steps=2),
        RunConfig(dtype="bf16"),
        RunConfig(activation_checkpointing=True),
        RunConfig(regather=False),
        RunConfig(ulysses_all_to_all="yunchang"),
        RunConfig(seed=1),
    ]
    keys = [rows.key(rows.identity(run)) for run in changed]
    assert len({base, *keys}) == len(changed) + 1


def test_a_profile_that_changed_is_another_cells(tmp_path: Path) -> None:
    file = tmp_path / "here.yml"
    profile = profiles.PROFILES["h100-80g"]
    run = RunConfig(dry_run=True, dtype="bf16", hardware=str(file))
    keys = set()
    for issue_s in (5e-6, 6e-6):
        assert profile.speeds is not None
        profile_file.write(replace(profile, speeds=replace(profile.speeds, issue_s=issue_s)), file)
        keys |= {rows.key(rows.identity(run)), rows.key(rows.identity(run))}
    assert len(keys) == 2
    assert rows.identity(replace(run, hardware="h100-80g"))["hardware_sha256"] is None


def test_a_column_sets_options_that_exist() -> None:
    known = dict(flags_of(RunConfig()))
    for name, column in (rows.IDENTITY | rows.ENVIRONMENT).items():
        assert set(column.options) <= known.keys(), name
        if name != "model":
            assert column.texts("1").keys() == set(column.options), name


def test_an_unknown_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="speling"):
        rows.append(tmp_path / "rows.csv", {"speling": 1})
