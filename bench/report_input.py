"""What a report is made of: files told apart by their columns, and cells fit to be drawn.

Nothing that a file says is trusted: cells are text until they have been checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import rows
from bench.layouts import layout, peer_methods
from methods import METHODS

_SIZES = ("world_size", "sequence_parallel_size", "ring_parallel_size", "data_parallel_size")
_COUNTS = (*_SIZES, "seq_len", "micro_batch_size", "gradient_accumulation_steps")
_TEXTS = ("flops_convention", "peak_flops_source")
_RESULTS = rows.COLUMNS[rows.COLUMNS.index("error") + 1 :]
_NUMBERS = (*_COUNTS, *(name for name in _RESULTS if name not in _TEXTS))
_CELLS = {"method", "status", "seq_len"}
_MAP = {"method", *_SIZES[::3], "ring_parallel_size", "seq_len", "next_slower"}
_STEPS = {
    f"{quantity}{of}"
    for quantity in ("loss", "grad_norm")
    for of in ("", "_reference", "_difference")
}
_ERRORS = {"cluster", "method", "layout", "seq_len", "measured_ms", "predicted_ms"}
_STUDY = ("model", "model_implementation", "dtype", "mode", "device", "hardware")
_DRAWN = ("method", *_SIZES, "seq_len", "ring_order", "ring_backend")
_SETTING = tuple(name for name in rows.IDENTITY if name not in (*_STUDY, *_DRAWN))
_MOST = 40
"""Studies, and settings of one: the largest."""
_VALID = "CSV files of run, sweep, verify, plan --map and the study of predictions, or JSON traces"


@dataclass
class Given:
    """All that the files of a report hold.

    Attributes:
        cells: Rows of cells as text, those of earlier versions too; of a cell measured twice the
            last.
        maps: Maps of methods by file, numbers as numbers.
        steps: Steps of verify by file, likewise.
        errors: Predicted and measured cells, likewise.
        traces: Chrome traces by file.
        notes: What was left out, and why.
    """

    cells: pd.DataFrame
    maps: dict[str, pd.DataFrame] = field(default_factory=dict)
    steps: dict[str, pd.DataFrame] = field(default_factory=dict)
    errors: dict[str, pd.DataFrame] = field(default_factory=dict)
    traces: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(paths: list[Path]) -> Given:
    """Every file, each as what its columns say that it is.

    Raises:
        ValueError: a file is missing or is none of those; names it.
    """
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise ValueError(f"rows: no such file: {', '.join(missing)}; valid: {_VALID}")
    given, cells = Given(pd.DataFrame()), []
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
        elif columns >= _MAP and "status" not in columns:
            given.maps[path.stem] = _numbers(table, _MAP - {"method"})
        elif "peer" in columns and "pairs" in columns:
            given.notes.append(f"{path}: beside peers, which python -m bench compare draws itself")
        elif absent := _CELLS - columns:
            raise ValueError(
                f"rows: {path} has no column {', '.join(sorted(absent))}; valid: {_VALID}"
            )
        else:
            cells.append(table.assign(file=path.name))
    given.cells = _last_of_each(cells)
    return given


def _table(path: Path, notes: list[str]) -> pd.DataFrame:
    """A CSV as text; lines that are too long are left out with a note."""
    how: dict[str, Any] = {"dtype": str, "keep_default_na": False, "encoding_errors": "replace"}
    try:
        try:
            return pd.read_csv(path, **how)
        except pd.errors.ParserError:
            found = pd.read_csv(path, on_bad_lines="skip", **how)
            notes.append(f"{path}: lines with more cells than its header are left out")
            return found
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"rows: {path} is no CSV: {reason}; valid: {_VALID}") from None


def _trace(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found["traceEvents"], list):
            return found
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"rows: {path} is no trace of run --trace; valid: {_VALID}")


def _last_of_each(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows as text under the present columns; of those of one cell that ended alike the
    last."""
    names = [*rows.COLUMNS, "file"]
    tables = [table.reindex(columns=names, fill_value="") for table in tables]
    if not tables:
        return pd.DataFrame(columns=names)
    whole = pd.concat(tables, ignore_index=True).fillna("")
    identity = whole[[*rows.IDENTITY, "mode", "device"]].assign(
        asked=whole["hardware"].where(whole["mode"] == "dry_run", ""),
        ended=whole["status"] == "ok",
    )
    return whole[~identity.duplicated(keep="last")].reset_index(drop=True)


def _numbers(table: pd.DataFrame, columns: Any) -> pd.DataFrame:
    """The columns as numbers; what is none, or is past all measure, is missing."""
    found = {}
    for name in columns:
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        found[name] = values.where(np.isfinite(values) & (values.abs() < 1e30))
    return pd.concat([table.drop(columns=[*found]), pd.DataFrame(found)], axis=1)


def drawable(given: Given) -> pd.DataFrame:
    """Cells that charts may show: ok, or counted in a dry run though they do not fit; numbers as
    numbers, with `layout` and `step_tokens`, rows of unknown methods and sizes left out."""
    cells = given.cells
    counted = cells["status"].str.startswith("oom") & (cells["mode"] == "dry_run")
    data = _numbers(cells[(cells["status"] == "ok") | counted], _NUMBERS)
    for name in _COUNTS[1:4] + _COUNTS[5:]:
        data[name] = data[name].where(cells.loc[data.index, name] != "", 1)  # as older rows mean
    known = data["method"].isin([*METHODS, *peer_methods()])
    sound = known & (data[[*_COUNTS]] >= 1).all(axis=1)
    if left := int((~sound).sum()):
        given.notes.append(f"{left} rows in no figure: their method or a size is none")
    data = data[sound]
    return data.assign(
        layout=_layouts(data),
        step_tokens=data["seq_len"]
        * data["data_parallel_size"]
        * data["micro_batch_size"]
        * data["gradient_accumulation_steps"],
    )


def _layouts(data: pd.DataFrame) -> pd.Series:
    """Each row's layout, worked out once for rows that are alike."""
    names = ["method", "ring_parallel_size", "ring_order", "ring_backend", "sequence_parallel_size"]
    alike = data.groupby(names, sort=False).ngroup()
    firsts = data.loc[~alike.duplicated(), names]
    known = {alike[row["index"]]: layout(row) for row in firsts.reset_index().to_dict("records")}
    return alike.map(known)


def studies(data: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of one model, dtype, mode and hardware, with their label, most rows first."""
    group = data.groupby(list(_STUDY), sort=False).ngroup()
    for number in group.value_counts().index[:_MOST]:
        of = data[group == number]
        first = of.iloc[0]
        what = (first["model"], first["dtype"], first["mode"].replace("_", " "), first["hardware"])
        yield ", ".join(filter(None, what)), of


def settings(data: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of a study that are alike in all but layout, ranks and length, most first; of each
    study its first ones before any study's second ones."""
    found = []
    cells = ["layout", "world_size", "seq_len"]
    for label, of in studies(data):
        group = of.groupby(list(_SETTING), sort=False).ngroup()
        differ = [name for name in _SETTING if of[name].nunique() > 1]
        for place, number in enumerate(group.value_counts().index[:_MOST]):
            alike = of[group == number]
            told = f"{label}; {_told(alike.iloc[0][differ])}" if differ else label
            shown = alike.drop_duplicates(cells, keep="last").sort_values(cells)
            found.append((place, told, shown))
    for _, label, of in sorted(found, key=lambda one: (one[0], -len(one[2]))):
        yield label, of


def _told(setting: pd.Series) -> str:
    """What is set, in words."""
    told = {str(name): str(value) for name, value in setting.items()}
    parts = [n if v == "True" else f"{n} {v}" for n, v in told.items() if v not in ("", "False")]
    return ", ".join(parts) or "none of the toggles"
