"""The inputs of a report: files recognised by their columns, and the cells that can be drawn.

No content of a file is trusted: cells are text until they have been checked.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import rows
from bench.hardware import overrides
from bench.hardware.profiles import PROFILES, Hardware
from bench.report.charts import compare
from bench.report.labels import TRICKS, is_outside, layout, peer_methods, tricks
from methods import METHODS

_AXES = ("sequence_parallel_size", "ring_parallel_size", "data_parallel_size")
_BATCH = ("micro_batch_size", "gradient_accumulation_steps")
_COUNTS = ("world_size", *_AXES, "seq_len", *_BATCH)
_TEXTS = ("noisy", "flops_convention", "peak_flops_source", "longest_limit", "ladder_toggle")
_MEASURES = tuple(name for name in rows.RESULTS if name not in _TEXTS)
_CELLS = {"method", "status", "seq_len"}
_MAP_NUMBERS = {"world_size", "data_parallel_size", "ring_parallel_size", "seq_len", "next_slower"}
_STEPS = {
    f"{quantity}{of}"
    for quantity in ("loss", "grad_norm")
    for of in ("", "_reference", "_difference")
}
_COMPARED = {"peer", "status", "dtype", *compare.NUMBERS}
_ERRORS = {"cluster", "method", "layout", "seq_len", "measured_ms", "predicted_ms"}
_STUDY = ("model", "model_implementation", "dtype", "mode", "device", "hardware")
_DRAWN = ("method", "world_size", *_AXES, "seq_len", "ring_order", "ring_backend")
_SETTING = tuple(name for name in rows.IDENTITY if name not in (*_STUDY, *_DRAWN))
_MOST = 40
"""Most studies, and most settings per study; those with the most rows are kept."""
MOST_ROWS = 1_000_000
"""Most rows of all files of cells together; they take about 3 GB."""
_CHUNK = 100_000
"""Rows of a file that are read at a time."""
_VALID = (
    "CSV files of run, sweep, verify, compare, plan --map and the study of predictions, "
    "or JSON traces"
)


@dataclass
class ReportInputs:
    """The contents of a report's files.

    Attributes:
        cells: Rows of cells, also those written by earlier versions; if a cell was measured twice,
            the last row. Results are numbers, all other columns text.
        maps: Maps of methods by file, numbers as numbers.
        steps: Steps of verify by file, numbers as numbers.
        compared: Rows of compare by file, numbers as numbers.
        errors: Predicted and measured times by file, numbers as numbers.
        traces: Chrome traces by file.
        notes: Omissions, with the reason of each.
    """

    cells: pd.DataFrame
    maps: dict[str, pd.DataFrame] = field(default_factory=dict)
    steps: dict[str, pd.DataFrame] = field(default_factory=dict)
    compared: dict[str, pd.DataFrame] = field(default_factory=dict)
    errors: dict[str, pd.DataFrame] = field(default_factory=dict)
    traces: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(paths: list[Path]) -> ReportInputs:
    """Read every file as the kind that its columns show.

    Raises:
        ValueError: a file is missing or of no known kind; the message names it.
    """
    missing = [str(path) for path in paths if not isfile(path)]
    if missing:
        raise ValueError(f"rows: no such file: {', '.join(missing)}; valid: {_VALID}")
    given, cells = ReportInputs(pd.DataFrame()), []
    for path in paths:
        if path.suffix == ".json":
            given.traces[path.stem] = _trace(path)
            continue
        table = _table(path, given.notes)
        columns = set(table.columns)
        if columns >= _STEPS:
            given.steps[path.stem] = _numbers(table, _STEPS)
        elif columns >= _ERRORS:
            given.errors[path.stem] = _numbers(table, {"seq_len", "measured_ms", "predicted_ms"})
        elif columns >= {"method", *_MAP_NUMBERS} and "status" not in columns:
            given.maps[path.stem] = _numbers(table, _MAP_NUMBERS)
        elif columns >= _COMPARED:
            given.compared[path.stem] = _numbers(table, compare.NUMBERS)
        elif absent := _CELLS - columns:
            raise ValueError(
                f"rows: {path} has no column {', '.join(sorted(absent))}; valid: {_VALID}"
            )
        else:
            cells.append(table.assign(file=path.name))
    given.cells = _last_of_each(cells, given.notes)
    return given


def _table(path: Path, notes: list[str]) -> pd.DataFrame:
    """The rows of a CSV file; lines with too many cells are left out with a note."""
    try:
        try:
            return _rows(path, notes, "error")
        except pd.errors.ParserError:
            table = _rows(path, notes, "skip")
            notes.append(f"{path}: lines with more cells than its header are left out")
            return table
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"rows: {path} is no CSV: {reason}; valid: {_VALID}") from None


def _rows(path: Path, notes: list[str], on_bad_lines: Any) -> pd.DataFrame:
    """The rows of a CSV file, results as numbers, see :attr:`ReportInputs.cells`."""
    try:
        return _read_as(float, path, notes, on_bad_lines)
    except pd.errors.ParserError:
        raise
    except ValueError:  # a result that is no number
        return _read_as(str, path, notes, on_bad_lines)


def _read_as(dtype: type, path: Path, notes: list[str], on_bad_lines: Any) -> pd.DataFrame:
    """Read the rows, with results first as one type. Float takes half the time of str, but fails if
    any result is no number."""
    dtypes = defaultdict(lambda: str, dict.fromkeys(_MEASURES, dtype))
    missing = dict.fromkeys(_MEASURES, ("", "nan", "NaN"))
    options: dict[str, Any] = {"dtype": dtypes, "na_values": missing, "keep_default_na": False}
    options |= {"on_bad_lines": on_bad_lines, "encoding_errors": "replace", "chunksize": _CHUNK}
    pieces: list[pd.DataFrame] = []
    total = 0
    with pd.read_csv(path, **options) as chunks:
        for chunk in chunks:
            measures = [name for name in _MEASURES if name in chunk]
            texts = chunk.drop(columns=measures).fillna("")  # for lines with too few cells
            pieces.append(pd.concat([texts, _numbers(chunk[measures], measures)], axis=1))
            total += len(chunk)
            while sum(map(len, pieces[1:])) >= MOST_ROWS:
                del pieces[0]
    return _last(pd.concat(pieces, ignore_index=True), total, str(path), notes)


def _last(table: pd.DataFrame, total: int, source: str, notes: list[str]) -> pd.DataFrame:
    """The last MOST_ROWS rows, and a note if there were more."""
    if total > MOST_ROWS:
        notes.append(f"{source}: {total} rows, of which only the last {MOST_ROWS} are shown")
    return table.tail(MOST_ROWS)


def _trace(path: Path) -> dict[str, Any]:
    try:
        trace = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(trace["traceEvents"], list):
            return trace
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError(f"rows: {path} is no trace of run --trace; valid: {_VALID}")


def _last_of_each(tables: list[pd.DataFrame], notes: list[str]) -> pd.DataFrame:
    """Join tables with the current columns. Keep the last row of each cell and outcome."""
    names = [*rows.COLUMNS, "file"]
    texts = [name for name in names if name not in _MEASURES]
    if not tables:
        return pd.DataFrame("", index=[], columns=names, dtype=object)
    for number, table in enumerate(tables):
        absent = [name for name in texts if name not in table]
        empty = pd.DataFrame("", index=table.index, columns=absent, dtype=str)
        tables[number] = pd.concat([table, empty], axis=1).reindex(columns=names)
    total = sum(map(len, tables))
    whole = _last(pd.concat(tables, ignore_index=True), total, "all files", notes)
    identity = whole[[name for name in rows.KEY if _differs(whole[name])]].assign(
        asked=whole["hardware"].where(whole["mode"] == "dry_run", ""),
        ended=whole["status"] == "ok",
    )
    return whole[~identity.duplicated(keep="last")].reset_index(drop=True)


def _differs(values: pd.Series) -> bool:
    """Whether the values are not all equal."""
    return bool(len(values) and (values != values.iloc[0]).any())


def _numbers(table: pd.DataFrame, columns: Any) -> pd.DataFrame:
    """The table with these columns as numbers; texts, infinities and sizes over 1e30 are NaN."""
    numbers = {}
    for name in columns:
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        numbers[name] = values.where(np.isfinite(values) & (values.abs() < 1e30))
    return pd.concat([table.drop(columns=[*numbers]), pd.DataFrame(numbers)], axis=1)


def drawable(given: ReportInputs, profiles: Mapping[str, Hardware] = PROFILES) -> pd.DataFrame:
    """The cells that charts may show: ok, or counted in a dry run although they do not fit.

    Numbers are numbers, and the columns `layout`, `step_tokens` and `usable_bytes` are added. Rows
    with an unknown method or an impossible size are left out with a note.

    Args:
        profiles: Hardware by its name in the rows or by the file of a user's profile.
    """
    cells = given.cells
    counted = cells["status"].str.startswith("oom") & (cells["mode"] == "dry_run")
    data = _numbers(cells[(cells["status"] == "ok") | counted], _COUNTS)
    for name in (*_AXES, *_BATCH):
        data[name] = data[name].where(cells.loc[data.index, name] != "", 1)  # empty in older rows
    outside = {name for name in data["method"] if is_outside(name)}
    known = data["method"].isin([*METHODS, *peer_methods(), *outside])
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
    return data.assign(
        layout=_layouts(data),
        usable_bytes=data["hardware"].map({n: of.usable_bytes for n, of in named.items() if of}),
        step_tokens=data["seq_len"]
        * data["data_parallel_size"]
        * data["micro_batch_size"]
        * data["gradient_accumulation_steps"],
    )


def _layouts(data: pd.DataFrame) -> pd.Series:
    """The layout of each row, computed once for rows with the same values."""
    names = ["method", "ring_parallel_size", "ring_order", "ring_backend", "sequence_parallel_size"]
    alike = data.groupby(names, sort=False).ngroup()
    firsts = data.loc[~alike.duplicated(), names]
    known = {alike[row["index"]]: layout(row) for row in firsts.reset_index().to_dict("records")}
    return alike.map(known)


def studies(data: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield label and rows for each model, dtype, mode and hardware, most rows first."""
    group = _alike(data, _STUDY)
    for number in group.value_counts().index[:_MOST]:
        study = data[group == number]
        first = study.iloc[0]
        parts = (first["model"], first["dtype"], first["mode"].replace("_", " "), first["hardware"])
        yield ", ".join(filter(None, parts)), study


def settings(data: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield label and rows for each setting: rows of a study that differ only in layout, ranks and
    length. The largest setting of every study comes first, then the second largest."""
    groups = []
    cells = ["layout", "world_size", "seq_len"]
    for label, study in studies(data):
        group = _alike(study, _SETTING)
        differ = [name for name in _SETTING if _differs(study[name])]
        for place, number in enumerate(group.value_counts().index[:_MOST]):
            alike = study.loc[group == number, cells]
            options = study.loc[alike.index[0], differ].to_dict()
            setting = _in_words(options) or "none of the toggles"
            name = f"{label}; {setting}" if differ else label
            shown = alike.drop_duplicates(keep="last").sort_values(cells)
            groups.append((place, name, shown.index))
    for _, label, shown in sorted(groups, key=lambda one: (one[0], -len(one[2]))):
        yield label, data.loc[shown]


def _alike(data: pd.DataFrame, names: tuple[str, ...]) -> pd.Series:
    """A group number for each row, the same for rows with equal values in these columns."""
    differ = [name for name in names if _differs(data[name])]
    if not differ:
        return pd.Series(0, index=data.index)
    return data.groupby(differ, sort=False).ngroup()


def toggles(data: pd.DataFrame) -> list[str]:
    """The settings of each row in words, where they differ between the rows."""
    trick_columns = (*TRICKS, "tiled_loss_engine", "tiled_loss_bytes")
    differ = [name for name in _SETTING if name not in trick_columns and _differs(data[name])]
    others = data[differ].to_dict("records")
    words = zip(tricks(data), map(_in_words, others), strict=True)
    return ["; ".join(filter(None, both)) or "no trick" for both in words]


def _in_words(setting: Mapping[Any, Any]) -> str:
    """The options that are set, with their values unless True; empty if there are none."""
    texts = {str(name): str(value) for name, value in setting.items()}
    parts = [n if v == "True" else f"{n} {v}" for n, v in texts.items() if v not in ("", "False")]
    return ", ".join(parts)
