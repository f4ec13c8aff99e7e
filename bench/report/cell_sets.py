"""Sets of cells that a chart may show together, and the words for what differs between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from bench import rows
from bench.report.labels import TRICKS, tricks

AXES = ("sequence_parallel_size", "ring_parallel_size", "data_parallel_size")
_STUDY = ("model", "model_implementation", "dtype", "mode", "device", "hardware")
_DRAWN = ("method", "world_size", *AXES, "seq_len", "ring_order", "ring_backend")
_SETTING = tuple(name for name in rows.IDENTITY if name not in (*_STUDY, *_DRAWN))
_MOST = 40
"""Most studies, and most settings per study; those with the most rows are kept."""


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
        differ = [name for name in _SETTING if differs(study[name])]
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
    differ = [name for name in names if differs(data[name])]
    if not differ:
        return pd.Series(0, index=data.index)
    return data.groupby(differ, sort=False).ngroup()


def toggles(data: pd.DataFrame) -> list[str]:
    """The settings of each row in words, where they differ between the rows."""
    trick_columns = (*TRICKS, "tiled_loss_engine", "tiled_loss_bytes")
    differ = [name for name in _SETTING if name not in trick_columns and differs(data[name])]
    others = data[differ].to_dict("records")
    words = zip(tricks(data), map(_in_words, others), strict=True)
    return ["; ".join(filter(None, both)) or "no trick" for both in words]


def _in_words(setting: Mapping[Any, Any]) -> str:
    """The options that are set, with their values unless True; empty if there are none."""
    texts = {str(name): str(value) for name, value in setting.items()}
    parts = [n if v == "True" else f"{n} {v}" for n, v in texts.items() if v not in ("", "False")]
    return ", ".join(parts)


def differs(values: pd.Series) -> bool:
    """Whether the values are not all equal."""
    return bool(len(values) and (values != values.iloc[0]).any())
