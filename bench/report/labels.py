"""Names and styles of rows in charts: layouts, lengths, colours that are distinct to everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

import pandas as pd

from methods import METHODS
from methods.from_file import is_name
from methods.peers.checks import PREFIX, name_of
from methods.peers.registry import PEERS
from odysseus.config.pairs import parts_of

# Okabe and Ito's palette (jfly.uni-koeln.de/color): distinct without colour vision.
_METHOD_STYLE: dict[str, dict[str, Any]] = {
    "tp": {"color": "#D55E00", "marker": "o", "linestyle": "-"},
    "tp_sp": {"color": "#E69F00", "marker": "s", "linestyle": "--"},
    "ulysses": {"color": "#0072B2", "marker": "^", "linestyle": "-."},
    "odysseus": {"color": "#009E73", "marker": "D", "linestyle": ":"},
}
_PURE_RING = {"color": "#CC79A7", "marker": "*", "linestyle": (0, (3, 1, 1, 1, 1, 1))}
_PEER_MARKERS = "v<>phX"
_OTHER_STYLES: list[dict[str, Any]] = [
    {"color": color, "marker": marker, "linestyle": (0, (5, 1))}
    for marker in "PXd8"
    for color in ("black", "#56B4E9", "#7F7F7F", "#8C564B")
]
"""Styles of pairs without a name of their own, and of methods from outside this project."""
STACK_STYLE: list[dict[str, Any]] = [
    {"facecolor": "#0072B2", "hatch": ""},
    {"facecolor": "#E69F00", "hatch": "//"},
    {"facecolor": "#009E73", "hatch": ".."},
    {"facecolor": "#CC79A7", "hatch": "xx"},
    {"facecolor": "#56B4E9", "hatch": "--"},
]
RULE: dict[str, Any] = {"color": "black", "lw": 1.2}
"""Style of lines that measured bars are compared with: a formula, a limit."""
_TRICKS = {
    "activation_checkpoint_cpu_offload": "checkpoint offload",
    "activation_checkpointing": "checkpointing",
    "tiled_mlp_compute": "tiled MLP",
    "tiled_loss_compute": "tiled loss",
    "compile": "compile",
}
_ORIGINS = {"measured": "measured", "dry_run": "predicted"}
"""Word for the numbers of rows, by the rows' mode."""
TOGGLE_NAMES = _TRICKS | {
    "ulysses_head_chunks": "chunks of heads",
    "optimizer.offload": "optimizer on host",
    "parameter_offload": "weights on host",
}
"""Short names of the toggles of a ladder, by option."""
TRICKS = tuple(_TRICKS)
"""Columns of options that have a name in charts."""
MIB, GIB = 2**20, 2**30


def layout(row: Mapping[Any, Any]) -> str:
    """The name of a row's method and ring. In a pure ring all methods but peers are the same and
    share one name."""
    ring = int(row.get("ring_parallel_size") or 1)  # rows of versions without rings have none
    backend = row.get("ring_backend") or "native"
    variant = " contiguous" * (row.get("ring_order") == "contiguous")
    variant += f" {backend}" * (backend != "native")
    if ring == 1 or name_of(row["method"]):  # tsp has an order and a backend without a ring axis
        return row["method"] + (variant if ring == 1 else "")
    name = f"ring {ring}{variant}"
    is_pure = row["sequence_parallel_size"] == (row.get("tensor_parallel_size") or 1) == 1
    return name if is_pure else f"{row['method']} x {name}"


def is_pure_ring(layout: str) -> bool:
    """Whether a layout is a ring over all ranks of a sample, in which the method does not
    matter."""
    method, size, _ = _parts(layout)
    return size > 1 and not method


def layouts(data: pd.DataFrame) -> pd.Series:
    """The layout of each row, computed once for rows with the same values. Sizes may be texts; what
    is no number counts as 1."""
    sizes = ["ring_parallel_size", "sequence_parallel_size"]
    sizes += ["tensor_parallel_size"] * ("tensor_parallel_size" in data)
    known = data[["method", "ring_order", "ring_backend"]].copy()
    for name in sizes:
        numbers = pd.to_numeric(data[name], errors="coerce").astype(float)
        known[name] = numbers.where(numbers.abs() < 1e15, 1)
    alike = known.groupby([*known], sort=False).ngroup()
    firsts = known[~alike.duplicated()].reset_index().to_dict("records")
    return alike.map({alike[row["index"]]: layout(row) for row in firsts}).astype(object)


def layouts_of(data: pd.DataFrame) -> list[str]:
    """Return the layouts of rows: by ring size, then in the order of the methods, then other
    methods by name, peers, and pure rings last."""
    order = [*METHODS, None, *peer_methods(), ""]

    def sort_key(name: str) -> tuple[int, int, str, str]:
        method, size, variant = _parts(name)
        return size, order.index(None if _is_other(method) else method), method, variant

    return sorted(dict.fromkeys(data["layout"]), key=sort_key)


def peer_methods() -> list[str]:
    """The names of all peers as methods."""
    return [f"{PREFIX}{name}" for name in PEERS]


def is_pair(method: str) -> bool:
    """Whether a row's method is a pair of an attention and an MLP, without a name of its own."""
    return method not in METHODS and any(parts_of(method))


def is_outside(method: str) -> bool:
    """Whether a row's method is neither this project's nor a peer, but came from a file: it has no
    closed forms."""
    return method not in METHODS and not name_of(method) and is_name(method)


def _is_other(method: str) -> bool:
    return is_pair(method) or is_outside(method)


def style_of(name: str) -> dict[str, Any]:
    """Return the style of a layout.

    A plain method has its own style. With a ring it is hollow, smaller for larger rings, and other
    orders and backends of the ring have their own lines and markers. A peer has the colour of this
    project's method, a hollow marker, and its own shape. A pair, or a method from outside this
    project, always has the style that follows from its name.
    """
    if peer := PEERS.get(name_of(name)):
        same_method = [other for other in PEERS if PEERS[other].method == peer.method]
        marker = _PEER_MARKERS[same_method.index(name_of(name)) % len(_PEER_MARKERS)]
        return _METHOD_STYLE[peer.method] | {"marker": marker, "markerfacecolor": "white"}
    method, size, variant = _parts(name)
    style = _METHOD_STYLE.get(method, _PURE_RING)
    if _is_other(method):
        style = _OTHER_STYLES[crc32(method.encode()) % len(_OTHER_STYLES)]
    if size == 1:
        return style
    if "contiguous" in variant:
        style = style | {"linestyle": ":"}
    if variant not in ("", "contiguous"):
        style = style | {"marker": "P"}
    size_pt = max(3, 8 - size.bit_length())
    return style | {"markerfacecolor": "white", "markersize": size_pt, "alpha": 0.8}


def _parts(name: str) -> tuple[str, int, str]:
    """Split a layout into method (empty in a pure ring), ring size, and the ring's order and
    backend."""
    method, ring, rest = name.rpartition("ring ")
    if not ring:
        method, _, variant = name.partition(" ")
        return method, 1, variant
    size, _, variant = rest.partition(" ")
    return method.removesuffix(" x "), int(size), variant


def methods_of(data: pd.DataFrame) -> list[str]:
    """Return the methods of rows, peers left out: this project's in the order of the table, then
    others by name."""
    present = set(data["method"])
    return [*(name for name in METHODS if name in present), *sorted(filter(_is_other, present))]


def tricks(data: pd.DataFrame) -> list[str]:
    """The names of the memory tricks that are on, for each row."""
    is_on_by_label = {label: (data[name] == "True").tolist() for name, label in _TRICKS.items()}
    return [
        ", ".join(label for label, is_on in zip(is_on_by_label, row, strict=True) if is_on)
        for row in zip(*is_on_by_label.values(), strict=True)
    ]


def length_label(tokens: float) -> str:
    """The text of a sequence length on an axis: 4K, 1M, 1000."""
    for size, letter in ((2**20, "M"), (2**10, "K")):
        if tokens >= size and tokens % size == 0:
            return f"{tokens / size:g}{letter}"
    return f"{tokens:g}"


def ranks_label(count: Any) -> str:
    """The text of a number of ranks."""
    return f"{int(count)} ranks" if count > 1 else "1 rank"


def lengths_ticks(lengths: Any) -> dict[float, str]:
    """Ticks at sequence lengths, nine at most."""
    return {float(n): length_label(n) for n in few(lengths, 9)}


def few(values: Any, most: int) -> list[Any]:
    """The distinct values in order, or `most` of them, evenly spread and with both ends."""
    distinct = sorted(set(values))
    if len(distinct) <= most:
        return distinct
    return [distinct[round(i * (len(distinct) - 1) / (most - 1))] for i in range(most)]


def bytes_unit(largest: float) -> tuple[int, str]:
    """Bytes per unit, and the unit's name, for an axis that ends at `largest` bytes."""
    return (GIB, "GiB") if largest >= 10 * GIB else (MIB, "MiB")


def source_of(data: pd.DataFrame) -> str:
    """The rows' model, dtype, mode (measured or dry run) and hardware."""
    columns = [c for c in ("model", "dtype", "mode", "hardware") if c in data]
    words = {c: dict.fromkeys(map(str, data[c])) for c in columns}
    if "mode" in words:
        words["mode"] = dict.fromkeys(mode.replace("_", " ") for mode in words["mode"])
    return ", ".join(filter(None, (" / ".join(of) for of in words.values())))


def origin_of(data: pd.DataFrame) -> str:
    """Return whether rows are measured or predicted, or both, in words; empty if unknown."""
    modes = set(data["mode"]) if "mode" in data else set()
    return " and ".join(word for mode, word in _ORIGINS.items() if mode in modes)
