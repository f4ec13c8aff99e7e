"""One block of each method in time, from the traces of dry runs (``run --trace``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bench.meters.traffic import COLLECTIVES
from bench.report.chart import Axis, Bars, Chart, Panel
from bench.report.labels import STACK_STYLE
from methods import METHODS

_BLOCK = re.compile(r"(forward|backward) model\.layers\.(\d+)")
_STYLES: dict[str, dict[str, Any]] = {
    "attention": STACK_STYLE[0],
    "matmul": STACK_STYLE[4],
    "other compute": {"facecolor": "#F0E442", "hatch": ""},
    "activations sent": STACK_STYLE[1],
    "weights, gradients sent": STACK_STYLE[3],
    "copies to and from host": STACK_STYLE[2],
}
_LANES = ("compute", "links", "copies")
_Event = tuple[str, str, float, float, str]
"""Group of operations (a key of _STYLES), unit of the model, start and length in ms, name."""
_MOST = 8
"""Most traces in the figure."""


def chart(traces: Mapping[str, Mapping[str, Any]]) -> Chart | str:
    """Draw forward and backward of a middle block, a lane each for compute, links and copies, which
    can overlap. Return the reason if there is no trace."""
    strips: dict[str, list[_Event]] = {}
    sources = set()
    for file, trace in traces.items():
        about = trace.get("otherData")
        about = about if isinstance(about, dict) else {}
        name = str(about.get("method"))
        strips[name if name in METHODS else file] = list(_events(trace))
        sources.add(str(about.get("of", file)))
    if not strips:
        return "no JSON of run --trace among the files"
    order = sorted(strips, key=lambda name: [*METHODS, name].index(name))[:_MOST]
    shown = {name: strips[name] for name in order}
    panels = [_panel(direction, shown) for direction in ("forward", "backward")]
    if not any(panel.marks for panel in panels):
        return "the traces have no blocks"
    return Chart(panels=panels, source="; ".join(sorted(sources)), origin="predicted", columns=2)


def _events(trace: Mapping[str, Any]) -> Iterator[_Event]:
    """Yield each operation that has all its fields."""
    for event in trace["traceEvents"]:
        try:
            begin, length = float(event["ts"]) / 1e3, float(event["dur"]) / 1e3
            args, kind = event["args"], str(event["cat"])
            unit, purpose = str(args.get("unit", "")), args.get("purpose")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            continue
        if 0 <= begin < 1e12 and 0 < length < 1e12:
            yield _group_of(kind, purpose), unit, begin, length, str(event.get("name", ""))


def _group_of(kind: str, purpose: Any) -> str:
    if kind in COLLECTIVES:
        return (
            "weights, gradients sent"
            if purpose in ("parameter", "gradient")
            else "activations sent"
        )
    if kind.startswith("attention"):
        return "attention"
    if kind in ("to_host", "to_device", "host"):
        return "copies to and from host"
    return "matmul" if kind == "matmul" else "other compute"


def _lane(group: str) -> str:
    if group.endswith("sent"):
        return "links"
    return "copies" if group.startswith("copies") else "compute"


def _panel(direction: str, strips: Mapping[str, list[_Event]]) -> Panel:
    """One pass of a block; each method's begins at time 0."""
    bars_by_group: dict[str, list[tuple[float, float, float, str]]] = {
        group: [] for group in _STYLES
    }
    ticks, place = {}, 0.0
    for method, events in strips.items():
        begin, end = _window(direction, events)
        inside = [e for e in events if e[2] < end and e[2] + e[3] > begin]
        for lane in _LANES:
            here = [e for e in inside if _lane(e[0]) == lane]
            if not here and lane == "copies":
                continue
            ticks[place] = f"{method} {lane}"
            for group, _, at, length, name in here:
                cut = max(at, begin), min(at + length, end)
                about = f"{method}: {name}, {length:.3f} ms"
                bars_by_group[group].append((place, cut[0] - begin, cut[1] - cut[0], about))
            place -= 1
        place -= 0.5
    marks = []
    for group, bars in bars_by_group.items():
        if bars:
            at, base, size, about = zip(*bars, strict=True)
            marks.append(
                Bars(
                    label=group,
                    at=at,
                    base=base,
                    size=size,
                    about=about,
                    style=_STYLES[group],
                    lying=True,
                    thickness=0.9,
                )
            )
    return Panel(
        title=f"{direction} of a block",
        x=Axis(label="time (ms)"),
        y=Axis(ticks=ticks),
        marks=marks,
        width=1.4,
        height=0.3 + 0.09 * len(ticks),
    )


def _window(direction: str, events: list[_Event]) -> tuple[float, float]:
    """Begin and end (ms) of a middle block's computation and collectives; 0, 0 without blocks."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for group, unit, begin, length, _ in events:
        match = _BLOCK.fullmatch(unit)
        if match and match[1] == direction and group in ("attention", "matmul", "activations sent"):
            blocks.setdefault(int(match[2]), []).append((begin, begin + length))
    if not blocks:
        return 0.0, 0.0
    middle = blocks[sorted(blocks)[len(blocks) // 2]]
    return min(begin for begin, _ in middle), max(end for _, end in middle)
