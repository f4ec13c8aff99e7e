"""The CSV file of a map of methods: its columns, its cells so far, and the run that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd

from bench import rows
from bench.hardware import overrides, profiles
from methods import METHODS
from odysseus.config.architecture import PRESETS
from odysseus.config.option_group import flags_of
from odysseus.config.run import RunConfig
from odysseus.io import files

CELL = ("world_size", "seq_len")
"""Columns that differ between the cells of one map."""
_SAME = (
    *("model", "attn_implementation", "micro_batch_size", "gradient_accumulation_steps"),
    *("dtype", "activation_checkpointing", "activation_checkpoint_cpu_offload"),
    *("tiled_mlp_compute", "optimizer_offload", "parameter_offload", "hardware"),
)
"""Columns that all cells of one map share."""
_COLUMNS = rows.IDENTITY | rows.ENVIRONMENT
_SET_BY_LAYOUT = {"method", "sequence_parallel_size", "ring_parallel_size", "dry_run"}
_HAVE_A_COLUMN = {option for name in (*_SAME, *CELL) for option in _COLUMNS[name].options}


def identity(base: RunConfig, methods: Sequence[str] = tuple(METHODS)) -> dict[str, Any]:
    """The columns that identify a cell of a map; only those of :data:`CELL` differ within one.

    Args:
        methods: The methods that are tried.
    """
    known = rows.identity(base)
    flags = _other_flags(base)
    if {*methods} != {*METHODS}:
        flags = f"method={','.join(sorted(methods))} {flags}".strip()
    more = {"hardware_sha256": known["hardware_sha256"] or "", "flags": flags}
    return {name: known[name] for name in _SAME} | more | {name: known[name] for name in CELL}


def _other_flags(base: RunConfig) -> str:
    """The options without a column that differ from their defaults, as name=value."""
    defaults = dict(flags_of(RunConfig()))
    known = _HAVE_A_COLUMN | _SET_BY_LAYOUT
    changed = ((n, v) for n, v in flags_of(base) if n not in known and v != defaults[n])
    return " ".join(f"{name}={value}" for name, value in changed)


def read(path: Path, base: RunConfig, methods: Sequence[str] = tuple(METHODS)) -> pd.DataFrame:
    """The cells in a map's file; none if there is no file.

    Args:
        methods: The methods that are tried.

    Raises:
        ValueError: the file is the map of another run.
    """
    expected = identity(base, methods)
    if not path.exists():
        return pd.DataFrame(columns=list(expected))
    texts = rows.read(path)
    for name in expected.keys() - set(CELL):
        others = set(texts[name]) - {str(expected[name])} if name in texts else {"no such column"}
        if others:
            raise ValueError(
                f"map: {path} has {name} = {', '.join(sorted(others))}, not {expected[name]}; "
                "valid: a new name, or the same flags"
            )
    return pd.read_csv(path)


def check_writable(path: Path) -> None:
    """Raise ValueError unless the map's file can be written, and is new or a map."""

    def foreign(path: Path) -> str:
        missing = {*CELL, *_SAME, "flags"} - set(rows.read(path).columns)
        return f"it is a file without the columns {sorted(missing)[:5]}" if missing else ""

    files.check_output("map", path, "a new name, or that of an earlier map", foreign)


def run_of(data: pd.DataFrame, known_profiles: Mapping[str, profiles.Hardware]) -> RunConfig:
    """The run of a map's file, with the least world_size in the file.

    Args:
        known_profiles: The hardware that the file may name.

    Raises:
        ValueError: a column is missing, its text is no valid value, the model or the hardware is
            not known, or the map was made with options that have no column.
    """
    if missing := set(_SAME) - set(data.columns):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    others = data["flags"].iloc[0] if "flags" in data else ""
    if others and not pd.isna(others):
        raise ValueError(f"it is of other flags too: {others}")
    run = RunConfig(world_size=int(data["world_size"].min()), dry_run=True)
    for name in _SAME:
        for option, text in _COLUMNS[name].texts(str(data[name].iloc[0])).items():
            run = _with_option(run, option, text)
    for what, name, is_known, known in (
        ("model", run.model.name_or_path, run.model.name_or_path in PRESETS, PRESETS),
        ("hardware", run.hardware, overrides.among(run.hardware, known_profiles), known_profiles),
    ):
        if not is_known:
            raise ValueError(f"{what} {name!r} is not known; valid: {', '.join(known)}")
    return run


def _with_option(config: Any, option: str, text: str) -> Any:
    """The run, or one of its groups of options, with one option changed.

    Args:
        option: Its dotted name.

    Raises:
        ValueError: the text is no value of the option.
    """
    name, _, nested = option.partition(".")
    if nested:
        return replace(config, **{name: _with_option(getattr(config, name), nested, text)})
    hint = get_type_hints(type(config))[name]
    for kind in get_args(hint) or (hint,):  # the choices of a Literal, or the types of a union
        if kind is bool and text in ("True", "False"):
            return replace(config, **{name: text == "True"})
        if kind is str or kind == text:
            return replace(config, **{name: text})
        if kind in (int, float):
            try:
                return replace(config, **{name: kind(text)})
            except ValueError:
                continue
    raise ValueError(f"{name} = {text!r} is no value of this option")
