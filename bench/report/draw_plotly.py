"""Convert charts for the page: plotly's JSON for each panel, and the legend."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import isfinite, log10
from typing import Any

from bench.report.chart import Area, Axis, Bars, Chart, Line, Mark, Panel, Style, shortened

# plotly's names of matplotlib's markers.
_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "*": "star"}
_SYMBOLS |= {"x": "x-thin", ".": "circle", "|": "line-ns", "P": "cross"}
_SYMBOLS |= {"v": "triangle-down", "<": "triangle-left", ">": "triangle-right"}
_SYMBOLS |= {"p": "pentagon", "h": "hexagon", "X": "x"}
_GLYPHS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "*": "★", "x": "✕", ".": "•", "|": "|", "P": "✚"}
_GLYPHS |= {"v": "▼", "<": "◀", ">": "▶", "p": "⬟", "h": "⬢", "X": "✖"}
_HOLLOW = {"●": "○", "■": "□", "▲": "△", "◆": "◇", "★": "☆"}
_HOLLOW |= {"▼": "▽", "◀": "◁", "▶": "▷", "⬟": "⬠", "⬢": "⬡"}
_NO_FILL = ("white", "none")
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot", "": "none", "None": "none"}
_HATCHES = {"": "", "//": "/", "..": ".", "xx": "x", "--": "-", "||": "|", "///": "/"}


def drawn(chart: Chart) -> dict[str, Any]:
    """The chart as JSON: panels for plotly, and a legend for the page's script."""
    return {
        "of": chart.of,
        "origin": chart.origin,
        "source": chart.source,
        "note": chart.note,
        "columns": chart.columns,
        "legend": [_entry(label, mark) for label, mark in chart.legend.items()],
        "panels": [_panel(panel) for panel in chart.panels],
    }


def _entry(label: str, mark: Mark) -> dict[str, str]:
    style = mark.style
    if isinstance(mark, Bars | Area):
        hatch = style.get("hatch", "")
        dash = {":": "dotted"}.get(str(style.get("linestyle", "")), "solid")
        return {"label": label, "fill": _fill(style), "hatch": hatch, "edge": dash}
    glyph = _GLYPHS.get(style.get("marker", ""), "")
    if style.get("markerfacecolor") in _NO_FILL:
        glyph = _HOLLOW.get(glyph, glyph)
    return {"label": label, "color": _grey(style["color"]), "dash": _dash(style), "glyph": glyph}


def _panel(panel: Panel) -> dict[str, Any]:
    layout = {
        "xaxis": _axis(panel.x, [x for mark in panel.marks for x in _ends(mark)[0]]),
        "yaxis": _axis(panel.y, [y for mark in panel.marks for y in _ends(mark)[1]]),
        "annotations": [
            {"x": x, "y": 1, "yref": "paper", "yanchor": "top", "text": _safe(text)}
            | {"showarrow": False}
            for x, text in panel.headings.items()
        ],
    }
    return {
        "title": panel.title,
        "width": panel.width,
        "height": panel.height,
        "data": [_trace(mark) for mark in panel.marks],
        "layout": layout,
    }


def _trace(mark: Mark) -> dict[str, Any]:
    if isinstance(mark, Line):
        return _line(mark)
    return _bars(mark) if isinstance(mark, Bars) else _area(mark)


def _area(mark: Area) -> dict[str, Any]:
    """A closed line around the area, along its upper end and back along its lower one."""
    until = [*mark.x[1:], mark.x[-1]]
    x = [end for step in zip(mark.x, until, strict=True) for end in step]
    high, low = ([y for value in side for y in (value, value)] for side in (mark.high, mark.low))
    return {
        "type": "scatter",
        "name": _safe(mark.label),
        "x": numbers([*x, *reversed(x)]),
        "y": numbers([*high, *reversed(low)]),
        "mode": "lines",
        "fill": "toself",
        "fillcolor": _fill(mark.style),
        "hoveron": "fills",
        "hoverinfo": "name",
        "fillpattern": _pattern(mark.style),
        "line": {"width": 0, "color": _fill(mark.style)},
    }


def _line(mark: Line) -> dict[str, Any]:
    style = mark.style
    dash, symbol = _dash(style), _SYMBOLS.get(style.get("marker", ""))
    color = _grey(style["color"])
    modes = [*["lines"] * (dash != "none"), *["markers"] * (symbol is not None)]
    hollow = style.get("markerfacecolor") in _NO_FILL or symbol in ("x-thin", "line-ns")
    texts = {"text": [mark.text.format(y) for y in mark.y]} if mark.text else {}
    modes += ["text"] * bool(texts)
    return (
        texts
        | _whiskers(mark, color)
        | {
            "type": "scatter",
            "textposition": "top center",
            "name": _safe(mark.label),
            "x": numbers(mark.x),
            "y": numbers(mark.y),
            "mode": "+".join(modes) or "none",
            "line": {
                "color": color,
                "dash": "solid" if dash == "none" else dash,
                "width": style.get("linewidth", style.get("lw", 1.5)),
            },
            "marker": {
                "color": color,
                "symbol": f"{symbol}-open" if hollow else symbol,
                "size": 1.4 * style.get("markersize", style.get("ms", 6)),
            },
        }
    )


def _whiskers(mark: Line, color: str) -> dict[str, Any]:
    if not mark.spans:
        return {}
    ends = [(high - y, y - low) for y, (low, high) in zip(mark.y, mark.spans, strict=True)]
    above, below = (numbers(part) for part in zip(*ends, strict=True))
    sizes = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    return {"error_y": sizes | {"color": color, "thickness": 1, "width": 3}}


def _bars(mark: Bars) -> dict[str, Any]:
    along, size = numbers(mark.at), numbers(mark.size)
    trace = {
        "type": "bar",
        "name": _safe(mark.label),
        "x": size if mark.lying else along,
        "y": along if mark.lying else size,
        "base": numbers(mark.base),
        "width": mark.thickness,
        "orientation": "h" if mark.lying else "v",
        "marker": {
            "color": _fill(mark.style),
            "line": {"width": 1 if "linestyle" in mark.style else 0, "color": "ink"},
            "pattern": _pattern(mark.style),
        },
    }
    if mark.text:
        texts = [_lines(text) for text in mark.text]
        place = "outside" if mark.style.get("hatch") else "inside"  # text on hatches is unreadable
        trace |= {"text": texts, "textposition": place, "insidetextanchor": "middle"}
        trace |= {"textangle": 0, "cliponaxis": False}
    if mark.about:
        trace |= {"hovertext": [_safe(text) for text in mark.about], "hoverinfo": "text"}
    return trace


def _pattern(style: Style) -> dict[str, Any]:
    shape = _HATCHES.get(style.get("hatch", ""), "/")
    return {"shape": shape, "size": 5, "fillmode": "overlay", "fgcolor": "#ffffff"} | {
        "fgopacity": 0.8
    }


def _ends(mark: Mark) -> tuple[Sequence[float], Sequence[float]]:
    return (mark.x, mark.y) if isinstance(mark, Line) else ((), ())


def _axis(axis: Axis, values: Sequence[float]) -> dict[str, Any]:
    layout: dict[str, Any] = {"title": {"text": _lines(axis.label)}}
    if axis.log:
        layout["type"] = "log"
        sizes = [value for value in values if value > 0 and isfinite(value)] or [1]
        if axis.log == 10 and min(sizes) >= 1 and max(sizes) < 300 * min(sizes):
            layout |= {"dtick": "D2", "exponentformat": "none"}
        else:
            layout |= {"dtick": log10(axis.log), "exponentformat": "power"}
    if axis.limits is not None:
        layout["range"] = [log10(end) if axis.log else end for end in axis.limits]
    if axis.ticks:
        texts = [_safe(shortened(text, 40)) for text in axis.ticks.values()]
        layout |= {"tickmode": "array", "tickvals": list(axis.ticks), "ticktext": texts}
    if axis.upright:
        layout |= {"tickangle": -90, "tickfont": {"size": 10}}
    return layout


def numbers(values: Sequence[float]) -> list[float | None]:
    """JSON numbers: integers, or floats of six digits; None for NaN and infinity."""
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | None:
    if not isfinite(value):
        return None
    return int(value) if value.is_integer() else float(f"{value:.6g}")


def _safe(text: str) -> str:
    """Text that plotly shows unchanged: it decodes only these three entities of its markup."""
    return escape(text, quote=False)


def _lines(text: str) -> str:
    return _safe(text).replace("\n", "<br>")


def _dash(style: Style) -> str:
    dash = style.get("linestyle", style.get("ls", "-"))
    return _DASHES.get(dash, "longdashdot") if isinstance(dash, str) else "longdashdot"


def _fill(style: Style) -> str:
    return "rgba(0,0,0,0)" if style.get("fill") is False else _grey(style["facecolor"])


def _grey(color: str) -> str:
    """The page's name of a colour: ink for black, paper for white; a number is a level of grey."""
    known = {"black": "ink", "white": "paper"}
    try:
        level = round(255 * float(color))
    except ValueError:
        return known.get(color, color)
    return f"rgb({level},{level},{level})"
