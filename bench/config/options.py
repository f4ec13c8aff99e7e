"""Parse the command line and YAML files: jsonargparse reads the dataclasses of the options.

Every error is a ValueError of one line, raised before any process starts. This module does not
import torch, so that help and parsing errors appear at once. bench/config/grid.py makes the runs.
"""

from __future__ import annotations

import difflib
import itertools
import re
import sys
from argparse import REMAINDER
from collections.abc import Sequence
from dataclasses import field, fields, is_dataclass, make_dataclass
from typing import Any, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from bench import safe_yaml
from bench.config import arctic, hardware_flags, shipped, yaml_text
from bench.config.command import command
from bench.config.help_text import HelpFormatter, epilog, type_of
from bench.config.launched import is_first_rank
from odysseus.config.option_group import groups_of
from odysseus.config.run import RunConfig


def parser(verb: str, description: str) -> ArgumentParser:
    """Return a verb's parser with only ``--config``."""
    verb_parser = ArgumentParser(
        prog=f"{command()} {verb}",
        usage=f"{command()} {verb} [--config FILE] [--FLAG VALUE ...]",
        description=description,
        epilog=epilog(verb, command()),
        formatter_class=HelpFormatter,
        exit_on_error=False,
        parser_mode=yaml_text.MODE,
    )
    verb_parser.add_argument(
        "--config",
        action="config",
        help="YAML file with the same keys, in which a dot is nesting; a flag on the command line "
        "wins. recipes/NAME.yml and sweeps/NAME.yml are also names of files that come with the "
        "package.",
    )
    return verb_parser


def parse(verb_parser: ArgumentParser, arguments: Sequence[str]) -> Any:
    """Return the parsed and instantiated arguments, by name.

    Raises:
        ValueError: a key is unknown or a value has a wrong type; the message says what is valid.
    """
    script: list[str] = []
    if any(action.nargs == REMAINDER for action in verb_parser._actions):
        arguments, script = _before_script(arguments)
    arguments = _with_values(verb_parser, arguments)
    for flag, value in itertools.pairwise(["", *arguments]):
        try:
            safe_yaml.check(value)
        except safe_yaml.UnboundedError as error:
            raise ValueError(f"{flag} {value}: {error}; valid: fewer") from None
        except yaml.YAMLError:  # any text may be a value, the parser knows
            continue
    defaults = verb_parser.get_defaults()
    arguments = _config_first(arguments)
    if isinstance(profile := defaults.get("hardware"), str):
        arguments = hardware_flags.fold(arguments, profile)
    arguments, notes = arctic.translate(arguments)
    try:
        given = verb_parser.parse_args(arguments)
        if script:
            given.script = script
        _check_none_is_empty(given, defaults)
        parsed = verb_parser.instantiate(given)
    except ArgumentError as error:
        message = " ".join(str(error).split()).replace("typing.", "").rstrip(".")
        raise ValueError(message + _suggestion(verb_parser, message)) from None
    if is_first_rank():
        for note in notes:
            print(note, file=sys.stderr)
    return parsed


def _before_script(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before a script, whose own look like any, and the script with them."""
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        alone = "=" in arguments[at] or arguments[at] in ("-h", "--help")
        at += 1 if alone else 2
    return list(arguments[:at]), list(arguments[at:])


def _with_values(verb_parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `true` after each boolean flag that has no value."""
    switches = {
        flag
        for action in verb_parser._actions
        if bool in (type_of(action), *get_args(type_of(action)))
        for flag in action.option_strings
    }
    complete: list[str] = []
    for argument, following in itertools.pairwise([*arguments, "--"]):
        complete.append(argument)
        if argument in switches and following.startswith("--"):
            complete.append("true")
    return complete


def _check_none_is_empty(given: Namespace, defaults: Namespace) -> None:
    """Raise ValueError if an option has no value but needs one, see :func:`Namespace.items`."""
    known = dict(defaults.items())
    for name, value in given.items():
        if value is None and known.get(name) is not None:
            raise ValueError(f"{name} is empty; valid: a value, or leave the key out")


def add_run_options(verb_parser: ArgumentParser) -> None:
    """Add the flags of one cell, by group."""
    for group, _ in groups_of(RunConfig):
        verb_parser.add_class_arguments(_options_of(group))


def add_grid_options(verb_parser: ArgumentParser) -> None:
    """Add the flags of one cell, by group; each may also hold a list."""
    for group, _ in groups_of(RunConfig):
        verb_parser.add_class_arguments(_options_of(group, lists=True))


def _options_of(group: Any, lists: bool = False) -> type:
    """Return a dataclass with the fields that a group declares itself, for jsonargparse to read.

    jsonargparse must not see the group itself: it would import torch, which the group's module
    imports only for type checkers.

    Args:
        lists: Whether to widen every field `T` to `T | list[T]`, also in nested groups.
    """
    hints: dict[str, Any] = get_type_hints(group)
    declared: list[tuple[str, Any, Any]] = []
    for f in fields(group):
        hint = hints[f.name]
        if f.name not in group.__annotations__:
            continue
        if is_dataclass(hint):
            nested: Any = _options_of(hint, lists) if lists else hint
            declared.append((f.name, nested, field(default_factory=nested)))
        else:
            declared.append(
                (f.name, hint | list[hint] if lists else hint, field(default=f.default))
            )
    options = make_dataclass(f"{group.__name__}Flags", declared, frozen=True, kw_only=True)
    options.__doc__ = group.__doc__
    return options


def _config_first(arguments: Sequence[str]) -> list[str]:
    """Move the files before the flags, so that a flag always wins."""
    files, flags = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            files += [argument, *map(_config_file, itertools.islice(rest, 1))]
        elif argument.startswith("--config="):
            flag, _, name = argument.partition("=")
            files.append(f"{flag}={_config_file(name)}")
        else:
            flags.append(argument)
    return files + flags


def _config_file(name: str) -> str:
    """Return the path of a file that exists; raise ValueError if it is none, or no YAML."""
    path = shipped.find(name)
    yaml_text.check_file("config", path)
    return path


def _suggestion(verb_parser: ArgumentParser, message: str) -> str:
    """Return the valid keys nearest to the unknown key of an error; empty for any other error."""
    unknown = re.search(
        r"unrecognized arguments: --([\w.]+)|option '([\w.]+)'", message, re.IGNORECASE
    )
    if unknown is None:
        return ""
    key = unknown[1] or unknown[2]
    known = [action.dest for action in verb_parser._actions]
    near = difflib.get_close_matches(key, known, 3) or [
        name for name in known if difflib.get_close_matches(key, [name.rpartition(".")[2]], 1)
    ]
    hint = f"did you mean {' or '.join(near)}?" if near else "--help lists the valid keys"
    return f"; {hint}"
