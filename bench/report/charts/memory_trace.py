"""Memory over one step by kind, a panel per file of ``run --memory_trace``, on equal axes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from bench.meters.memory import KINDS
from bench.meters.memory_trace import MemoryTrace
from bench.report.chart import Area, Axis, Chart, Line, Mark, Panel
from bench.report.labels import RULE, STACK_STYLE, bytes_unit, origin_of, source_of

_MOST = 8
"""Most files in the figure."""
_NEVER_A_TITLE = {"hardware_sha256", "data_parallel_size", "device"}


def chart(traces: Mapping[str, MemoryTrace]) -> Chart | str:
    """Stacked bytes over the share of the step's allocations and releases. What differs between the
    files is each panel's title. The reason if there are no files."""
    if not traces:
        return "no JSON of run --memory_trace among the files"
    shown = dict([*traces.items()][:_MOST])
    highest = max(_peak(trace) for trace in shown.values())
    divisor, unit = bytes_unit(highest)
    titles = _titles(shown)
    x = Axis(label="allocations and releases of the step (%)", limits=(0, 100))
    y = Axis(label=f"memory of a rank ({unit})", limits=(0, 1.08 * max(highest, 1) / divisor))
    panels = [
        Panel(
            title=f"{titles[name]}: peak {_peak(trace) / divisor:.4g} {unit}",
            x=x,
            y=y,
            marks=_marks(trace, divisor),
            width=1.2,
        )
        for name, trace in shown.items()
    ]
    cells = pd.DataFrame([trace.cell for trace in shown.values()]).fillna("")
    left = len(traces) - len(shown)
    return Chart(
        panels=panels,
        origin=origin_of(cells),
        source=source_of(cells),
        note=f"{left} more files are left out." if left else "",
        columns=2,
    )


def _titles(traces: Mapping[str, MemoryTrace]) -> dict[str, str]:
    """The values that differ between the files, by file; its name where none does. Columns that
    only some cells have, such as the details of an option that is on, are left out if others
    differ."""
    values = {
        name: {trace.cell.get(name, "") for trace in traces.values()}
        for name in dict.fromkeys(name for trace in traces.values() for name in trace.cell)
        if name not in _NEVER_A_TITLE
    }
    differ = [name for name, texts in values.items() if len(texts) > 1]
    differ = [name for name in differ if "" not in values[name]] or differ
    return {
        file: ", ".join(f"{name} {trace.cell.get(name) or 'none'}" for name in differ) or file
        for file, trace in traces.items()
    }


def _peak(trace: MemoryTrace) -> int:
    return max(sum(kinds) for kinds in zip(*trace.course.bytes.values(), strict=True))


def _marks(trace: MemoryTrace, divisor: int) -> list[Mark]:
    """The areas of the kinds, each on top of the ones before it, and the line at the peak."""
    course = trace.course
    share = [100 * at / max(course.events, 1) for at in course.at]
    below = np.zeros(len(share))
    marks: list[Mark] = []
    for kind, style in zip(KINDS, STACK_STYLE, strict=True):
        above = below + np.asarray(course.bytes[kind]) / divisor
        marks.append(Area(label=kind, x=share, low=[*below], high=[*above], style=style))
        below = above
    peak = [_peak(trace) / divisor] * 2
    marks.append(Line(label="peak", x=[0, 100], y=peak, style={**RULE, "linestyle": "--"}))
    return marks
