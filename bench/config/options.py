"""Command line and YAML to checked configurations, by jsonargparse from the dataclasses.

Whatever is wrong ends as one ValueError of one line before any process starts.
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from jsonargparse import ArgumentError, ArgumentParser

from bench.config import arctic
from bench.simulator import dry_run
from methods import METHODS
from methods.peers import PEERS, PREFIX, as_method, check_package, name_of
from odysseus.config.run import RunConfig
from odysseus.io import checkpoint
from odysseus.io.text import check_tokens
from odysseus.model import liger
from odysseus.model.kernels import choose_kernels
from odysseus.parallel import chunked_block, ring, ulysses_chunks, zero_overlap
from odysseus.parallel.mesh import pick_device
from odysseus.training import implementation


def parser(verb: str, description: str) -> ArgumentParser:
    """An empty parser of one verb, with ``--config``."""
    made = ArgumentParser(
        prog=f"python -m bench {verb}", description=description, exit_on_error=False
    )
    made.add_argument(
        "--config",
        action="config",
        help="YAML file with the same keys, dots as nesting; a flag on the command line wins.",
    )
    return made


def parse(made: ArgumentParser, arguments: Sequence[str]) -> Any:
    """The parsed and instantiated arguments.

    Raises:
        ValueError: an unknown key or a wrong type, named with what would be valid.
    """
    arguments, notes = arctic.translate(_config_first(arguments))
    try:
        parsed = made.instantiate(made.parse_args(arguments))
    except ArgumentError as error:
        message = " ".join(str(error).split()).replace("typing.", "").rstrip(".")
        raise ValueError(message + _suggestion(made, message)) from None
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            print(note, file=sys.stderr)
    return parsed


def add_run_options(made: ArgumentParser) -> None:
    """The flags of one cell."""
    made.add_class_arguments(RunConfig)


def add_grid_options(made: ArgumentParser) -> None:
    """The flags of one cell, each of which may also hold a list."""
    made.add_class_arguments(_grid_of(RunConfig))


def run_config(parsed: Any, peers: bool = False) -> RunConfig:
    """The cell that was asked for.

    Args:
        peers: Whether its method may be a peer.

    Raises:
        ValueError: its method is none, is not for this verb, or lacks its package.
    """
    return _settled(RunConfig(**{f.name: parsed[f.name] for f in fields(RunConfig)}), peers)


def expand(parsed: Any, peers: bool = False) -> list[RunConfig]:
    """Every cell of a grid, the first key varying slowest; `peers` as :func:`run_config`.

    Raises:
        ValueError: as :func:`run_config`.
    """
    cells = _expand(RunConfig, {f.name: parsed[f.name] for f in fields(RunConfig)})
    return [_settled(run, peers) for run in cells]


def _settled(run: RunConfig, peers: bool) -> RunConfig:
    """The cell, of a peer with what that always does."""
    known = [*METHODS, *(f"{PREFIX}{name}" for name in PEERS)]
    if run.method not in known:
        raise ValueError(f"method = {run.method!r} is none; valid: {str(known)[1:-1]}")
    if not peers:
        check_method(run, "this verb")
    if name := name_of(run.method):
        check_package(name)
    return as_method.settled(run)


def check_method(run: RunConfig, what: str) -> None:
    """Raise ValueError if the run's method is a peer, where that cannot be."""
    if name_of(run.method):
        raise ValueError(f"method = {run.method} is not for {what}; valid: {', '.join(METHODS)}")


def check(run: RunConfig) -> None:
    """Raise ValueError unless the cell can be started: sizes, method, text, devices."""
    run.check()
    if name_of(run.method):
        as_method.check(run)
        run = as_method.ours(run)
    implementation.check(run)
    METHODS[run.method].check(run)
    chunked_block.check(run)
    dry_run.check(run)
    if run.dry_run:
        zero_overlap.check(run, dry_run.on_gpu(run))
        return
    device = pick_device(run.device)
    if run.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but there is no GPU; valid here: auto, cpu")
    choose_kernels(run.model, device, run.compute_dtype)
    liger.check(run, device)
    ring.check(run, device)
    ulysses_chunks.check(run, device)
    zero_overlap.check(run, device.type == "cuda")
    check_compiler(run, device)
    check_tokens(run)
    checkpoint.check(run)


def refusal(run: RunConfig) -> str:
    """Why a cell cannot be started; empty if it can."""
    try:
        check(run)
    except ValueError as error:
        return str(error)
    return ""


def check_compiler(run: RunConfig, device: torch.device) -> None:
    """Raise ValueError if torch.compile is asked for where it has nothing to build with."""
    compiler = os.environ.get("CXX", "g++")
    if not run.compile:
        return
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(f"compile = true needs a C++ compiler, no {compiler} here; valid: false")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("compile = true needs the package triton; valid without it: false")


def check_gpus(run: RunConfig, launched: int | None) -> None:
    """Raise ValueError if the ranks of this machine outnumber its GPUs, or the launcher differs."""
    if launched is not None and launched != run.world_size:
        raise ValueError(
            f"world_size = {run.world_size}, but the launcher started {launched} processes; "
            f"valid: {launched}"
        )
    if run.dry_run and launched is not None:
        raise ValueError("dry_run = true has no peers; run it without torchrun or srun")
    if run.dry_run:
        return
    gpus = torch.cuda.device_count()
    if launched is None and pick_device(run.device).type == "cuda" and run.world_size > gpus:
        raise ValueError(
            f"world_size = {run.world_size} is more than the {gpus} GPUs of this machine; "
            f"valid: up to {gpus}, or device = cpu"
        )


def check_file(name: str, path: Path) -> None:
    """Raise ValueError unless a file of an option can be written."""
    if path.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise ValueError(
            f"{name} = {path} cannot be written; valid: a file in a folder that can be written to"
        )


def _grid_of(config: type) -> type:
    """The dataclass with every field `T` widened to `T | list[T]`, nested ones likewise."""
    hints = get_type_hints(config)
    widened = []
    for f in fields(config):
        hint = hints[f.name]
        if is_dataclass(hint):
            grid = _grid_of(hint)  # pyright: ignore[reportArgumentType]
            widened.append((f.name, grid, field(default_factory=grid)))
        else:
            widened.append((f.name, hint | list[hint], field(default=f.default)))
    made = make_dataclass(f"{config.__name__}Grid", widened, frozen=True, kw_only=True)
    made.__doc__ = config.__doc__
    return made


def _expand(config: type, values: dict[str, Any]) -> list[Any]:
    axes = []
    hints = get_type_hints(config)
    for name, value in values.items():
        if is_dataclass(hints[name]):
            nested = {f.name: getattr(value, f.name) for f in fields(value)}
            axes.append(_expand(hints[name], nested))
        else:
            axes.append(value if isinstance(value, list) else [value])
    return [config(**dict(zip(values, chosen, strict=True))) for chosen in itertools.product(*axes)]


def _config_first(arguments: Sequence[str]) -> list[str]:
    """Files before flags, so that a flag wins wherever it stands."""
    files, flags = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            files += [argument, *itertools.islice(rest, 1)]
        elif argument.startswith("--config="):
            files.append(argument)
        else:
            flags.append(argument)
    return files + flags


def _suggestion(made: ArgumentParser, message: str) -> str:
    unknown = re.search(
        r"unrecognized arguments: --([\w.]+)|option '([\w.]+)'", message, re.IGNORECASE
    )
    if unknown is None:
        return ""
    key = unknown[1] or unknown[2]
    known = [action.dest for action in made._actions]
    near = difflib.get_close_matches(key, known, 3) or [
        name for name in known if difflib.get_close_matches(key, [name.rpartition(".")[2]], 1)
    ]
    hint = f"did you mean {' or '.join(near)}?" if near else "--help lists the valid keys"
    return f"; {hint}"
