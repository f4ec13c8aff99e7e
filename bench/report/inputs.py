"""The inputs of a report: files recognised by their columns, and the cells that can be drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path
from typing import Any

import pandas as pd

from bench import rows
from bench.hardware import overrides
from bench.hardware.profiles import PROFILES, Hardware
from bench.meters import memory_trace
from bench.report import csv_table
from bench.report.cell_sets import AXES, differs
from bench.report.charts import compare, published
from bench.report.csv_table import Table, with_numbers
from bench.report.labels import is_outside, is_pair, is_pure_ring, layouts, peer_methods
from methods import METHODS

_BATCH = ("micro_batch_size", "gradient_accumulation_steps")
_COUNTS = ("world_size", *AXES, "seq_len", *_BATCH)
_CELLS = {"method", "status", "seq_len"}
_MAP_NUMBERS = {"world_size", "data_parallel_size", "ring_parallel_size", "seq_len", "next_slower"}
_STEPS = {
    f"{quantity}{of}"
    for quantity in ("loss", "grad_norm")
    for of in ("", "_reference", "_difference")
}
_COMPARED = {"peer", "status", "dtype", *compare.NUMBERS}
_ERRORS = {"cluster", "method", "layout", "seq_len", "measured_ms", "predicted_ms"}
_PUBLISHED = {"source", "gpu", *published.NUMBERS}
_VALID = (
    "CSV files of run, sweep, verify, compare, plan --map, validate and the study of predictions, "
    "or JSON files of run --trace and --memory_trace"
)


@dataclass
class ReportInputs:
    """The contents of a report's files.

    Attributes:
        cells: Rows of cells, also those written by earlier versions; if a cell was measured twice,
            the last row. Results are numbers, all other columns text.
        texts: The same rows with all columns of the files, as the files have them.
        maps: Maps of methods by file, numbers as numbers.
        steps: Steps of verify by file, numbers as numbers.
        compared: Rows of compare by file, numbers as numbers.
        errors: Predicted and measured times by file, numbers as numbers.
        published: Predicted and published times by file, numbers as numbers.
        traces: Chrome traces by file.
        memory: Memory over a step by file.
        notes: Omissions, with the reason of each.
    """

    cells: pd.DataFrame
    texts: pd.DataFrame = field(default_factory=pd.DataFrame)
    maps: dict[str, pd.DataFrame] = field(default_factory=dict)
    steps: dict[str, pd.DataFrame] = field(default_factory=dict)
    compared: dict[str, pd.DataFrame] = field(default_factory=dict)
    errors: dict[str, pd.DataFrame] = field(default_factory=dict)
    published: dict[str, pd.DataFrame] = field(default_factory=dict)
    traces: dict[str, dict[str, Any]] = field(default_factory=dict)
    memory: dict[str, memory_trace.MemoryTrace] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(paths: list[Path]) -> ReportInputs:
    """Read every file as the kind that its columns show.

    Raises:
        ValueError: a file is missing or of no known kind; the message names it.
    """
    missing = [str(path) for path in paths if not isfile(path)]
    if missing:
        raise ValueError(f"rows: no such file: {', '.join(missing)}; valid: {_VALID}")
    given, tables = ReportInputs(pd.DataFrame()), []
    for path in paths:
        if path.suffix == ".json":
            _add_json(path, given)
            continue
        try:
            table = csv_table.read(path, given.notes)
        except ValueError as error:
            raise ValueError(f"rows: {path} is no CSV: {error}; valid: {_VALID}") from None
        cells, columns = table.cells, set(table.cells.columns)
        if columns >= _STEPS:
            given.steps[path.stem] = with_numbers(cells, _STEPS | {"step", "tolerance"} & columns)
        elif columns >= _ERRORS:
            given.errors[path.stem] = _errors(cells)
        elif columns >= _PUBLISHED:
            given.published[path.stem] = with_numbers(cells, published.NUMBERS)
        elif columns >= {"source", "published", "settings"}:
            given.notes.append(f"{path}: published step times, drawn from the CSV of validate")
        elif columns >= {"method", *_MAP_NUMBERS} and "status" not in columns:
            numbers = _MAP_NUMBERS | {"tensor_parallel_size"} & columns
            given.maps[path.stem] = with_numbers(cells, numbers)
        elif columns >= _COMPARED:
            given.compared[path.stem] = with_numbers(cells, compare.NUMBERS)
        elif absent := _CELLS - columns:
            raise ValueError(
                f"rows: {path} has no column {', '.join(sorted(absent))}; valid: {_VALID}"
            )
        else:
            tables.append(Table(cells.assign(file=path.name), table.texts))
    given.cells, given.texts = _last_of_each(tables, given.notes)
    return given


def _errors(table: pd.DataFrame) -> pd.DataFrame:
    """Times of the study of predictions, whose errors may have an interval."""
    numbers = {"seq_len", "measured_ms", "predicted_ms", "error_min", "error_max"}
    return with_numbers(table, numbers & set(table.columns))


def _add_json(path: Path, given: ReportInputs) -> None:
    """Add a JSON file to the inputs of its kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if known := memory_trace.parsed(content):
            given.memory[path.stem] = known
            return
        if isinstance(content["traceEvents"], list):
            given.traces[path.stem] = content
            return
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError(f"rows: {path} is no trace of run; valid: {_VALID}")


def _last_of_each(tables: list[Table], notes: list[str]) -> Table:
    """Join tables with the current columns. Keep the last row of each cell and outcome."""
    names = [*rows.COLUMNS, "file"]
    if not tables:
        none = pd.DataFrame("", index=[], columns=names, dtype=object)
        return Table(none, none)
    cells = []
    for table in (table.cells for table in tables):
        absent = [n for n in names if n not in table and n not in csv_table.MEASURES]
        empty = pd.DataFrame("", index=table.index, columns=absent, dtype=str)
        cells.append(pd.concat([table, empty], axis=1).reindex(columns=names))
    total = sum(map(len, cells))
    whole = csv_table.last(pd.concat(cells, ignore_index=True), total, "all files", notes)
    texts = pd.concat([table.texts for table in tables], ignore_index=True).tail(len(whole))
    identity = whole[[name for name in rows.KEY if differs(whole[name])]].assign(
        asked=whole["hardware"].where(whole["mode"] == "dry_run", ""),
        ended=whole["status"] == "ok",
    )
    is_last = ~identity.duplicated(keep="last")
    whole = whole[is_last].reset_index(drop=True)
    # A CPU has no peak on a data sheet. Earlier versions timed a matmul beside every cell instead.
    timed = (whole["device"] == "cpu") & (whole["peak_flops_source"] == "measured matmul")
    whole["mfu"] = whole["mfu"].mask(timed)
    return Table(whole, texts[is_last].reset_index(drop=True))


def drawable(given: ReportInputs, profiles: Mapping[str, Hardware] = PROFILES) -> pd.DataFrame:
    """The cells that charts may show: ok, or counted in a dry run although they do not fit.

    Numbers are numbers, and the columns `layout`, `step_tokens` and `usable_bytes` are added. Rows
    with an unknown method or an impossible size are left out with a note, and of the rows of one
    pure ring with several methods all but one.

    Args:
        profiles: Hardware by its name in the rows or by the file of a user's profile.
    """
    cells = given.cells
    counted = cells["status"].str.startswith("oom") & (cells["mode"] == "dry_run")
    data = with_numbers(cells[(cells["status"] == "ok") | counted], _COUNTS)
    for name in (*AXES, *_BATCH):
        data[name] = data[name].where(cells.loc[data.index, name] != "", 1)  # empty in older rows
    outside = {name for name in data["method"] if is_outside(name)}
    pairs = {name for name in data["method"] if is_pair(name)}
    known = data["method"].isin([*METHODS, *pairs, *peer_methods(), *outside])
    sound = known & (data[[*_COUNTS]] >= 1).all(axis=1)
    if left := int((~sound).sum()):
        given.notes.append(f"{left} rows in no figure: their method or a size is none")
    data = data[sound].copy()
    given.notes += [
        f"{name} is a method from outside this project: no closed forms, so its theory columns are "
        "empty and its bars have no formula line"
        for name in sorted(outside & set(data["method"]))
    ]
    named = {name: overrides.among(name, profiles) for name in data["hardware"].unique()}
    data = data.assign(
        layout=layouts(data),
        usable_bytes=data["hardware"].map({n: of.usable_bytes for n, of in named.items() if of}),
        step_tokens=data["seq_len"]
        * data["data_parallel_size"]
        * data["micro_batch_size"]
        * data["gradient_accumulation_steps"],
    )
    return _one_of_each_ring(data, given.notes)


def _one_of_each_ring(data: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Keep one row per cell of a pure ring, whose methods are the same: that with the most steps,
    else the latest."""
    ring = data["layout"].map(is_pure_ring).astype(bool)
    if not ring.any():
        return data
    pure = data[ring].assign(
        asked=data["hardware"].where(data["mode"] == "dry_run", ""),
        taken=data["steps"].fillna(-1),
    )
    cell = ["layout", "asked", "status", *(name for name in rows.KEY if name != "method")]
    best = pure.sort_values(["taken", "utc"], kind="stable").drop_duplicates(cell, keep="last")
    if merged := len(pure) - len(best):
        notes.append(
            f"{merged} rows of pure rings are merged with another of the same cell: without a "
            "sequence axis all methods are the same"
        )
    return data[~ring | data.index.isin(best.index)]
