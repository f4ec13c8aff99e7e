"""Command line and YAML to checked configurations, by jsonargparse from the dataclasses.

Whatever is wrong ends as one ValueError of one line before any process starts.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import Field, field, fields, is_dataclass, make_dataclass
from typing import Any, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from bench.config import arctic, shipped
from bench.config.checks import check_method
from bench.config.command import command
from methods import METHODS, from_file, method_of
from methods.peers import as_method
from methods.peers.checks import PREFIX, check_package, name_of
from methods.peers.registry import PEERS
from odysseus.config.option_group import groups_of, ordered_fields
from odysseus.config.run import RunConfig


def parser(verb: str, description: str) -> ArgumentParser:
    """An empty parser of one verb, with ``--config``."""
    made = ArgumentParser(prog=f"{command()} {verb}", description=description, exit_on_error=False)
    made.add_argument(
        "--config",
        action="config",
        help="YAML file with the same keys, dots as nesting; a flag on the command line wins. "
        "recipes/NAME.yml and sweeps/NAME.yml also name the files that come with the package.",
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
    """The flags of one cell, by group."""
    for group, own in groups_of(RunConfig):
        made.add_class_arguments(group, skip=_inherited(group, own))


def add_grid_options(made: ArgumentParser) -> None:
    """The flags of one cell, by group; each may also hold a list."""
    for group, own in groups_of(RunConfig):
        made.add_class_arguments(_grid_of(group), skip=_inherited(group, own))


def run_config(parsed: Any, peers: bool = False) -> RunConfig:
    """The cell that was asked for.

    Args:
        peers: Whether its method may be a peer.

    Raises:
        ValueError: its method is none, is not for this verb, or lacks its package.
    """
    return _settled(RunConfig(**_options(parsed)), peers)


def expand(parsed: Any, peers: bool = False) -> list[RunConfig]:
    """Every cell of a grid, the first key varying slowest; `peers` as :func:`run_config`.

    Raises:
        ValueError: as :func:`run_config`.
    """
    return [_settled(run, peers) for run in _expand(RunConfig, _options(parsed))]


def _options(parsed: Any) -> dict[str, Any]:
    """The fields of a run, in order, from all that was parsed."""
    return {f.name: parsed[f.name] for f in ordered_fields(RunConfig)}


def _inherited(group: type, own: list[Field[Any]]) -> set[str]:
    """Names of the fields that a class has from its groups, which bring their own help."""
    return {f.name for f in fields(group)} - {f.name for f in own}


def _settled(run: RunConfig, peers: bool) -> RunConfig:
    """The cell, of a peer with what that always does."""
    known = [*METHODS, *(f"{PREFIX}{name}" for name in PEERS)]
    if from_file.is_file(run.method):
        method_of(run.method)
    elif run.method not in known:
        raise ValueError(
            f"method = {run.method!r} is none; valid: {str(known)[1:-1]}, or a file FILE.py "
            "with a METHOD"
        )
    if not peers:
        check_method(run, "this verb")
    if name := name_of(run.method):
        check_package(name)
    return as_method.settled(run)


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
            files += [argument, *map(shipped.find, itertools.islice(rest, 1))]
        elif argument.startswith("--config="):
            flag, _, name = argument.partition("=")
            files.append(f"{flag}={shipped.find(name)}")
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
