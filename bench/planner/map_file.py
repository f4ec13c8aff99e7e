"""The CSV file of a map of methods: its columns, its cells so far, and the run that it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pandas as pd

from bench import rows
from bench.hardware import overrides, profiles
from methods import METHODS
from methods.peers.checks import name_of
from methods.peers.registry import PEERS
from odysseus.config.architecture import PRESETS
from odysseus.config.groups import Batch, MemorySavings, Precision, Zero
from odysseus.config.option_group import flags_of
from odysseus.config.pairs import parts_of
from odysseus.config.parallelism import Parallelism
from odysseus.config.run import RunConfig
from odysseus.io import files

CELL = ("world_size", "seq_len")
"""Columns that differ between the cells of one map."""
SAME = (
    *("model", "attn_implementation", "micro_batch_size", "gradient_accumulation_steps"),
    *("dtype", "activation_checkpointing", "activation_checkpoint_cpu_offload"),
    *("tiled_mlp_compute", "optimizer_offload", "parameter_offload", "hardware"),
)
"""Columns that all cells of one map share."""
_COLUMNS = rows.IDENTITY | rows.ENVIRONMENT
_METHODS, _TENSOR_SIZES = "method", "map_tensor_parallel_sizes"
"""Names, among the flags of a file, of what the map tries."""
_AXES = ("tensor_parallel_size", "sequence_parallel_size", "ring_parallel_size")
_SET_BY_LAYOUT = {"method", "attention", "mlp", *_AXES, "dry_run"}
_HAVE_A_COLUMN = {option for name in (*SAME, *CELL) for option in _COLUMNS[name].options}
_GROUPS = (Parallelism, Batch, Precision, Zero, MemorySavings)
_READ_BACK = {f.name for group in _GROUPS for f in fields(group)} - _SET_BY_LAYOUT - _HAVE_A_COLUMN
"""Options that a map's run may have among its flags; none of them names a file."""


class Tried(NamedTuple):
    """The methods and layouts that a map tries in each cell.

    Attributes:
        methods: Names of methods.
        tensor_sizes: Sizes of the tensor axis; those above 1 are for methods that have one.
    """

    methods: Sequence[str] = tuple(METHODS)
    tensor_sizes: Sequence[int] = (1,)

    @property
    def flags(self) -> str:
        """The differences from a map of this project's four methods, as name=value."""
        texts = []
        if {*self.methods} != {*METHODS}:
            texts.append(f"{_METHODS}={','.join(sorted(self.methods))}")
        if {*self.tensor_sizes} != {1}:
            texts.append(f"{_TENSOR_SIZES}={','.join(map(str, sorted(self.tensor_sizes)))}")
        return " ".join(texts)


def identity(base: RunConfig, tried: Tried = Tried()) -> dict[str, Any]:
    """The columns that identify a cell of a map; only those of :data:`CELL` differ within one."""
    known = rows.identity(base)
    flags = f"{tried.flags} {_other_flags(base)}".strip()
    more = {"hardware_sha256": known["hardware_sha256"] or "", "flags": flags}
    return {name: known[name] for name in SAME} | more | {name: known[name] for name in CELL}


def _other_flags(base: RunConfig) -> str:
    """The options without a column that differ from their defaults, as name=value."""
    defaults = dict(flags_of(RunConfig()))
    known = _HAVE_A_COLUMN | _SET_BY_LAYOUT
    changed = ((n, v) for n, v in flags_of(base) if n not in known and v != defaults[n])
    return " ".join(f"{name}={value}" for name, value in changed)


def read(path: Path, base: RunConfig, tried: Tried = Tried()) -> pd.DataFrame:
    """The cells in a map's file; none if there is no file.

    Raises:
        ValueError: the file is the map of another run.
    """
    expected = identity(base, tried)
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
        missing = {*CELL, *SAME, "flags"} - set(rows.read(path).columns)
        return f"it is a file without the columns {sorted(missing)[:5]}" if missing else ""

    files.check_output("map", path, "a new name, or that of an earlier map", foreign)


def tried_of(data: pd.DataFrame) -> Tried:
    """Return the methods and layouts that the map of a file tries.

    Raises:
        ValueError: a method is neither a pair nor a peer (a file is never loaded), or a size is no
            number.
    """
    flags, defaults = _flags(data), Tried()
    methods = flags[_METHODS].split(",") if _METHODS in flags else defaults.methods
    for name in methods:
        if not any(parts_of(name)) and name_of(name) not in PEERS:
            raise ValueError(f"method {name!r} is not known; valid: pairs and peers")
    sizes = flags[_TENSOR_SIZES].split(",") if _TENSOR_SIZES in flags else defaults.tensor_sizes
    return Tried([*dict.fromkeys(methods)], [*dict.fromkeys(map(int, sizes))])


def run_of(data: pd.DataFrame, known_profiles: Mapping[str, profiles.Hardware]) -> RunConfig:
    """The run of a map's file, with the least world_size in the file.

    Args:
        known_profiles: The hardware that the file may name.

    Raises:
        ValueError: a column is missing, its text is no valid value, the model or the hardware is
            not known, or the map was made with options that a file does not give back.
    """
    if missing := set(SAME) - set(data.columns):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    run = RunConfig(world_size=int(data["world_size"].min()), dry_run=True)
    options = {n: text for n, text in _flags(data).items() if n not in (_METHODS, _TENSOR_SIZES)}
    if others := options.keys() - _READ_BACK:
        raise ValueError(f"it is of other flags too: {', '.join(sorted(others))}")
    for name in SAME:
        options |= _COLUMNS[name].texts(str(data[name].iloc[0]))
    for option, text in options.items():
        run = _with_option(run, option, text)
    for what, name, is_known, known in (
        ("model", run.model.name_or_path, run.model.name_or_path in PRESETS, PRESETS),
        ("hardware", run.hardware, overrides.among(run.hardware, known_profiles), known_profiles),
    ):
        if not is_known:
            raise ValueError(f"{what} {name!r} is not known; valid: {', '.join(known)}")
    return run


def _flags(data: pd.DataFrame) -> dict[str, str]:
    """The text of each flag of a map that has no column."""
    text = data["flags"].iloc[0] if "flags" in data else ""
    words = "" if pd.isna(text) else str(text)
    return {name: value for name, _, value in (word.partition("=") for word in words.split())}


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
    for kind in _kinds(get_type_hints(type(config))[name]):
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


def _kinds(hint: Any) -> Iterator[Any]:
    """The types of a union and the choices of a Literal, however nested, or the type itself."""
    if get_origin(hint) is Literal or not get_args(hint):
        yield from get_args(hint) or (hint,)
        return
    for part in get_args(hint):
        yield from _kinds(part)
