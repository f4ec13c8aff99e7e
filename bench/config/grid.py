"""Make runs from parsed options: one cell, or every cell of a grid."""

from __future__ import annotations

import itertools
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

from bench.config.checks import check_method
from bench.hardware import profile_file
from methods import METHODS, from_file, method_of
from methods.peers import as_method
from methods.peers.checks import PREFIX, check_package, name_of
from methods.peers.registry import PEERS
from odysseus.config.option_group import ordered_fields
from odysseus.config.pairs import ATTENTIONS, MLPS
from odysseus.config.run import RunConfig


def run_config(parsed: Any, peers: bool = False, method: str = "") -> RunConfig:
    """Return the cell that the parsed options describe.

    Args:
        peers: Whether its method may be a peer.
        method: Its method, in place of the parsed one.

    Raises:
        ValueError: its method is unknown, is not for this verb, or its package is not installed;
            or there is no profile of its hardware.
    """
    options = _options(parsed)
    options["method"] = method or options["method"]
    run = _with_peer_defaults(RunConfig(**options), peers)
    _check_hardware([run])
    return run


def expand(parsed: Any, peers: bool = False) -> list[RunConfig]:
    """Return every cell of a grid; the first key in the order of ``--help`` varies slowest.

    Args:
        peers: Whether methods may be peers.

    Raises:
        ValueError: a list is empty, or a cell's method or hardware is not valid, see
            :func:`run_config`.
    """
    runs = [_with_peer_defaults(run, peers) for run in _expand(RunConfig, _options(parsed))]
    _check_hardware(runs)
    return runs


def _check_hardware(runs: list[RunConfig]) -> None:
    """Raise ValueError unless every profile that a cell names can be read."""
    for name in sorted({run.hardware for run in runs} - {""}):
        profile_file.find(name)


def _options(parsed: Any) -> dict[str, Any]:
    """Return the options of a run, in order, from all parsed ones."""
    return {f.name: parsed[f.name] for f in ordered_fields(RunConfig)}


def _with_peer_defaults(run: RunConfig, peers: bool) -> RunConfig:
    """Return the cell, with the peer's fixed options if its method is a peer."""
    known = [*METHODS, *(f"{PREFIX}{name}" for name in PEERS)]
    if from_file.is_file(run.method):
        method_of(run.method)
    elif run.method not in known and not any(run.parts):
        raise ValueError(
            f"method = {run.method!r} is unknown; valid: {str(known)[1:-1]}, a pair ATTENTION+MLP "
            f"of {', '.join(ATTENTIONS)} and {', '.join(MLPS)}, or a file FILE.py with a METHOD"
        )
    if not peers:
        check_method(run, "this verb")
    if name := name_of(run.method):
        check_package(name)
    return as_method.with_peer_defaults(run)


def _expand(config: type, values: dict[str, Any], prefix: str = "") -> list[Any]:
    """Return one instance of a dataclass for each combination of the values in lists."""
    axes = []
    hints = get_type_hints(config)
    for name, value in values.items():
        if is_dataclass(hints[name]):
            nested = {f.name: getattr(value, f.name) for f in fields(value)}
            axes.append(_expand(hints[name], nested, f"{name}."))
        elif value == []:
            raise ValueError(f"{prefix}{name} = [] makes no cells; valid: at least one value")
        else:
            axes.append(value if isinstance(value, list) else [value])
    return [config(**dict(zip(values, chosen, strict=True))) for chosen in itertools.product(*axes)]
