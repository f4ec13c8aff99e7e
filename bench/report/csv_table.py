"""CSV files as tables: results as numbers, all other cells as text, and the texts of the file.

No content of a file is trusted: cells are text until they have been checked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench import rows

_TEXTS = ("flops_convention", "peak_flops_source", "longest_limit", "ladder_toggle", "noisy")
MEASURES = tuple(name for name in rows.RESULTS if name not in _TEXTS)
"""Columns that are numbers."""
MOST_ROWS = 1_000_000
"""Most rows of all files of cells together; they take about 3 GB."""
_CHUNK = 100_000
"""Rows of a file that are read at a time."""
_EXACT_BYTES = 2**24
"""Size of a file up to which its texts are kept beside its numbers, which takes twice the time."""


class Table(NamedTuple):
    """The rows of a file.

    Attributes:
        cells: Results are numbers, all other columns text.
        texts: The same rows as the file has them; numbers in a file that is too large for texts.
    """

    cells: pd.DataFrame
    texts: pd.DataFrame


def read(path: Path, notes: list[str]) -> Table:
    """Read a file; lines with too many cells are left out with a note.

    Raises:
        ValueError: the file is no CSV; the message has the reason.
    """
    try:
        try:
            return _rows(path, notes, "error")
        except pd.errors.ParserError:
            table = _rows(path, notes, "skip")
            notes.append(f"{path}: lines with more cells than its header are left out")
            return table
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def _rows(path: Path, notes: list[str], on_bad_lines: Any) -> Table:
    if path.stat().st_size > _EXACT_BYTES:
        try:
            return _read_as(float, path, notes, on_bad_lines)
        except pd.errors.ParserError:
            raise
        except ValueError:  # a result that is no number
            pass
    return _read_as(str, path, notes, on_bad_lines)


def _read_as(dtype: type, path: Path, notes: list[str], on_bad_lines: Any) -> Table:
    """Read the rows, with results first as one type. Float takes half the time of str, but fails if
    any result is no number, and loses its text."""
    dtypes = defaultdict(lambda: str, dict.fromkeys(MEASURES, dtype))
    options: dict[str, Any] = {"dtype": dtypes, "keep_default_na": False, "chunksize": _CHUNK}
    options |= {"on_bad_lines": on_bad_lines, "encoding_errors": "replace"}
    if dtype is float:
        options["na_values"] = dict.fromkeys(MEASURES, ("", "nan", "NaN"))
    pieces: list[Table] = []
    total = 0
    with pd.read_csv(path, **options) as chunks:
        for chunk in chunks:
            measures = [name for name in MEASURES if name in chunk]
            others = chunk.drop(columns=measures).fillna("")  # for lines with too few cells
            cells = pd.concat([others, with_numbers(chunk[measures], measures)], axis=1)
            texts = chunk.fillna("") if dtype is str else cells[chunk.columns]
            pieces.append(Table(cells, texts))
            total += len(chunk)
            while sum(len(piece.cells) for piece in pieces[1:]) >= MOST_ROWS:
                del pieces[0]
    cells, texts = (pd.concat(part, ignore_index=True) for part in zip(*pieces, strict=True))
    return Table(last(cells, total, str(path), notes), texts.tail(MOST_ROWS))


def last(table: pd.DataFrame, total: int, source: str, notes: list[str]) -> pd.DataFrame:
    """The last MOST_ROWS rows, and a note if there were more."""
    if total > MOST_ROWS:
        notes.append(f"{source}: {total} rows, of which only the last {MOST_ROWS} are shown")
    return table.tail(MOST_ROWS)


def with_numbers(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """The table with these columns as numbers; texts, infinities and sizes over 1e30 are NaN."""
    numbers = {}
    for name in columns:
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        numbers[name] = values.where(np.isfinite(values) & (values.abs() < 1e30))
    return pd.concat([table.drop(columns=[*numbers]), pd.DataFrame(numbers)], axis=1)


def as_text(value: Any) -> str:
    """The text of a cell: that of the file, or the shortest one of a number; empty for NaN."""
    if isinstance(value, str):
        return value
    number = float(value)
    if np.isnan(number):
        return ""
    return str(int(number) if number.is_integer() else number)
