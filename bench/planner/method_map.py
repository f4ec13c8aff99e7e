"""The map of methods: which is fastest at every length and number of GPUs, by dry runs.

Layouts are those that people choose: the sequence axis inside a node, and across nodes replicas or
a ring; or the sequence axis over everything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from bench import rows
from bench.config import checks, options
from bench.hardware import profile_file, profiles
from bench.planner import ranking
from bench.planner.longest import by_method
from methods import METHODS
from odysseus.config.architecture import PRESETS, Architecture
from odysseus.config.nested import ModelOptions
from odysseus.config.option_group import flags_of
from odysseus.config.run import RunConfig

_CELL = ["world_size", "seq_len"]
NOTHING = "nothing fits"
_MOST = 24
"""Lengths, and numbers of GPUs, of a figure."""
_SAME_FLAGS = ("micro_batch_size", "gradient_accumulation_steps", "dtype", "hardware")
_SAME_FLAGS += ("activation_checkpointing", "activation_checkpoint_cpu_offload")
_SAME_FLAGS += ("tiled_mlp_compute", "parameter_offload")
"""Columns of a map that are called as their flags are."""
_TOLD = {*_SAME_FLAGS, *_CELL, "method", "sequence_parallel_size", "ring_parallel_size", "dry_run"}
_TOLD |= {"optimizer.offload", *(f"model.{field.name}" for field in fields(ModelOptions))}
_TOLD -= {"model.type", "model.implementation"}
"""Flags that a map's other columns say, or that its layouts set."""


def layouts(base: RunConfig) -> Iterator[RunConfig]:
    """The runs that are tried for one cell."""
    world = base.world_size
    inside = profile_file.find(base.hardware).ranks_per_node(world)
    sizes = dict.fromkeys([(inside, 1), (inside, world // inside), (world, 1)])
    for (sequence, ring), method in product(sizes, METHODS):
        axes = {"sequence_parallel_size": sequence, "ring_parallel_size": ring}
        run = replace(by_method(method, base), **axes)
        if not checks.refusal(run):
            yield run


def cell(base: RunConfig) -> dict[str, Any]:
    """The fastest layout of one length on so many GPUs, and how much slower the best other method
    is."""
    found = ranking.ranked(layouts(base), lambda line: None)
    row: dict[str, Any] = identity(base)
    if not found:
        return row | {"method": NOTHING}
    best = found[0]
    others = [c for c in found if c.run.method != best.run.method]
    return row | {
        "method": best.run.method,
        "sequence_parallel_size": best.run.sequence_size,
        "ring_parallel_size": best.run.ring_parallel_size,
        "data_parallel_size": best.run.data_parallel_size,
        "tricks": best.tricks,
        **best.parts_ms,
        "tokens_per_s_per_gpu": best.tokens_per_s_per_gpu,
        "next_method": others[0].run.method if others else "",
        "next_slower": best.tokens_per_s_per_gpu / others[0].tokens_per_s_per_gpu - 1
        if others
        else None,
    }


def identity(base: RunConfig) -> dict[str, Any]:
    """What makes a cell this cell; all but the last two are the whole map's."""
    known = rows.identity(base)
    names = ("model", "attn_implementation", "micro_batch_size", "gradient_accumulation_steps")
    names += ("dtype", "activation_checkpointing", "activation_checkpoint_cpu_offload")
    names += ("tiled_mlp_compute", "optimizer_offload", "parameter_offload", "hardware")
    more = {"hardware_sha256": known["hardware_sha256"] or "", "flags": _other_flags(base)}
    return {name: known[name] for name in names} | more | {name: known[name] for name in _CELL}


def _other_flags(base: RunConfig) -> str:
    """What else is set, as name=value."""
    told, usual = dict(flags_of(base)), dict(flags_of(RunConfig()))
    return " ".join(f"{n}={v}" for n, v in told.items() if v != usual[n] and n not in _TOLD)


def cells(base: RunConfig, seq_lens: list[int], world_sizes: list[int], out: Path) -> pd.DataFrame:
    """Every cell, as many at a time as there are cores; a file of them keeps what it has.

    Args:
        out: CSV file of this map.

    Raises:
        ValueError: no layout of a cell can run, or the file is another map's.
    """
    wanted = [replace(base, world_size=n, seq_len=s) for n, s in product(world_sizes, seq_lens)]
    if not wanted:
        raise ValueError("map has no cells; valid: a number each in map_seq_lens, map_world_sizes")
    for run in wanted:
        if run.world_size < 1 or not any(layouts(run)):
            raise ValueError(
                f"no layout of world_size = {run.world_size}, seq_len = {run.seq_len} can run: "
                f"{checks.refusal(run) or 'no method divides its axes'}"
            )
    known = _read(out, wanted[0])
    done = set(map(tuple, known[_CELL].to_numpy().tolist()))
    left = [run for run in wanted if (run.world_size, run.seq_len) not in done]
    with ProcessPoolExecutor(os.cpu_count(), get_context("forkserver")) as pool:
        for row in pool.map(cell, left):
            known = pd.concat([known, pd.DataFrame([row])], ignore_index=True)
            known.to_csv(out, index=False)
    return known


def _read(out: Path, base: RunConfig) -> pd.DataFrame:
    """The cells of a file, if it is this map's."""
    mine = identity(base)
    if not out.exists():
        return pd.DataFrame(columns=list(mine))
    found = rows.read(out)
    for name in mine:
        others = set(found[name]) - {str(mine[name])} if name in found else {"no such column"}
        if name not in _CELL and others:
            raise ValueError(
                f"map: {out} has {name} = {', '.join(sorted(others))}, not {mine[name]}; "
                "valid: a new name, or the same flags"
            )
    return pd.read_csv(out)


def run_of(data: pd.DataFrame, known_profiles: Mapping[str, profiles.Hardware]) -> RunConfig:
    """The run that a map's file is of, as its columns say.

    Args:
        known_profiles: By the names that the file may have for its hardware.

    Raises:
        ValueError: a column is missing or says what cannot be run, model or hardware is unknown, or
            other flags were set than have columns.
    """
    needed = {"model", "attn_implementation", "optimizer_offload", *_SAME_FLAGS}
    if missing := needed - set(data.columns):
        raise ValueError(f"no column {', '.join(sorted(missing))}")
    if "flags" in data and not pd.isna(others := data["flags"].iloc[0]):
        raise ValueError(f"it is of other flags too: {others}")
    first = {name: str(data[name].iloc[0]) for name in needed}
    model, _, changed = first["model"].removesuffix(")").partition("(")
    for what, found, known in (
        ("model", model, PRESETS),
        ("hardware", first["hardware"], known_profiles),
    ):
        if found not in known:
            raise ValueError(f"{what} {found!r} is not known; valid: {', '.join(known)}")
    sizes = [part.partition("=") for part in changed.split(", ") if part]
    if others := {name for name, _, _ in sizes} - {f.name for f in fields(Architecture)}:
        raise ValueError(f"{', '.join(sorted(others))} is no size of a model")
    flags = {f"model.{name}": value for name, _, value in sizes}
    flags |= {name: first[name] for name in _SAME_FLAGS}
    flags |= {
        "model.name_or_path": model,
        "model.attn_implementation": first["attn_implementation"],
        "optimizer.offload": first["optimizer_offload"],
        "world_size": f"{min(data['world_size']):.0f}",
    }
    parser = options.parser("plan", "")
    options.add_run_options(parser)
    told = [f"--{name}={value}" for name, value in flags.items()]
    return replace(options.run_config(options.parse(parser, told)), dry_run=True)
