"""The figures of a report, and the rows that each of them shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from bench.hardware.profiles import PROFILES, Hardware
from bench.planner import map_file
from bench.pool import pool
from bench.report import accuracy, cell_sets, draw_matplotlib, labels
from bench.report.chart import Chart
from bench.report.charts import (
    ablation,
    cells,
    compare,
    ladder,
    longest,
    memory_trace,
    prediction,
    published,
    ring_balance,
    times,
    trace,
)
from bench.report.charts import method_map as map_chart
from bench.report.charts import verify as verify_chart
from bench.report.inputs import ReportInputs
from bench.report.look import SCREEN, Look

_MOST = 6
"""Most charts of one figure."""
_TIMES = ["seq_len", "measured_ms", "predicted_ms"]
Drawer = Callable[[pd.DataFrame], Chart | str]


@dataclass
class Card:
    """One figure: a chart for each set of similar rows.

    Attributes:
        notes: Omissions, with the reason of each.
        left_out: Why there is no chart; empty if there is one.
    """

    name: str
    title: str
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: str = ""


_BY_SETTING: dict[str, tuple[str, Drawer]] = {
    "throughput": ("Throughput against length", times.throughput),
    "mfu": ("MFU against length", times.mfu),
    "traffic": ("Traffic against the formula", cells.traffic),
    "memory": ("Peak memory", cells.memory),
    "strong_scaling": ("Strong scaling", times.strong_scaling),
    "weak_scaling": ("Weak scaling", times.weak_scaling),
}
_BY_STUDY: dict[str, tuple[str, Drawer]] = {
    "ablation": ("Memory tricks, one after another", ablation.chart),
    "longest": ("Longest sequence that fits", longest.chart),
    "ladder": ("Longest sequence, toggle by toggle", ladder.chart),
    "balance": ("Balance of a ring", ring_balance.chart),
}


def cards(
    given: ReportInputs, data: pd.DataFrame, profiles: Mapping[str, Hardware] = PROFILES
) -> list[Card]:
    """All figures of a report, also those without a chart.

    Args:
        data: The cells that can be drawn, see :func:`bench.report.inputs.drawable`.
        profiles: The known hardware, by its name in the files.
    """
    settings = [(label, _fewer(rows)) for label, rows in cell_sets.settings(data)]
    settings = [one for one in settings if len(one[1]) > 1] or settings  # one cell is no line
    shown = [_card(name, *how, settings) for name, how in _BY_SETTING.items()]
    shown += [_card(name, *how, cell_sets.studies(data)) for name, how in _BY_STUDY.items()]
    compared = given.compared.items()
    shown.append(_card("compare", "Beside other implementations", compare.chart, compared))
    stated = given.published.items()
    shown.append(_card("validation", "Predicted against published", published.scatter, stated))
    shown += [_predictions(given, data), _verified(given), _maps(given, profiles)]
    return [*shown, _timeline(given), _memory_over_a_step(given)]


def _card(name: str, title: str, draw: Drawer, sets: Iterable[tuple[str, pd.DataFrame]]) -> Card:
    """The figure with a chart for each set of rows that can be drawn, six at most."""
    card, reasons, more = Card(name, title), [], 0
    for label, rows in sets:
        if len(card.charts) == _MOST:
            more += 1
            continue
        chart = draw(rows)
        if isinstance(chart, str):
            reasons.append(chart)
        else:
            origin = chart.origin or labels.origin_of(rows)
            card.charts.append(replace(chart, of=label, origin=origin))
    if not card.charts:
        card.left_out = ", or ".join([*dict.fromkeys(reasons)][:2]) or "no rows for it"
    if more:
        card.notes.append(f"{more} more sets of rows are left out; give fewer files to see them")
    return card


def _predictions(given: ReportInputs, data: pd.DataFrame) -> Card:
    """The figure of files of errors, and of cells that are both measured and predicted."""
    tables = dict(given.errors)
    if len(both := accuracy.matched_rows(data)):
        tables["these rows"] = both
    sets = [
        (name, errors[errors["method"].isin(labels.methods_of(errors))].dropna(subset=_TIMES))
        for name, errors in tables.items()
    ]
    known = [(name, errors) for name, errors in sets if len(errors)]
    card = _card("prediction", "Predicted against measured", prediction.scatter, known)
    lengths = _card("", "", prediction.over_lengths, known)
    card.charts += [replace(chart, of=f"{chart.of}, by length") for chart in lengths.charts]
    return card


def _verified(given: ReportInputs) -> Card:
    sets = given.steps.items()
    return _card(
        "verify", "Training, split and not", lambda rows: verify_chart.overlay(rows, ""), sets
    )


def _maps(given: ReportInputs, profiles: Mapping[str, Hardware]) -> Card:
    card = Card("map", "Fastest method")
    for name, data in given.maps.items():
        sound = data.dropna(subset=["seq_len", "world_size"])
        sound = sound[(sound["seq_len"] >= 1) & (sound["world_size"] >= 1)]
        if sound.empty:
            continue
        fewest = {}
        try:
            run = map_file.run_of(sound, profiles)
            fewest = map_chart.fewest_of(run, sound, map_file.tried_of(sound).methods)
        except ValueError as error:
            card.notes.append(f"{name}: who sends the fewest bytes is not drawn: {error}")
        source = labels.source_of(sound.assign(mode="dry run"))
        chart = map_chart.chart(sound, source, fewest)
        card.charts.append(replace(chart, of=name, origin="predicted"))
    if not card.charts:
        card.left_out = "no CSV of plan --map among the files"
    return card


def _timeline(given: ReportInputs) -> Card:
    return _card(
        "timeline",
        "A block in time",
        lambda _: trace.chart(given.traces),
        [("", pd.DataFrame())],
    )


def _memory_over_a_step(given: ReportInputs) -> Card:
    title = "Memory over a step"
    chart = memory_trace.chart(given.memory)
    if isinstance(chart, str):
        return Card("memory_trace", title, left_out=chart)
    return Card("memory_trace", title, [chart])


def _fewer(data: pd.DataFrame) -> pd.DataFrame:
    """Limit rows to the numbers of ranks, lengths and layouts that fit into a figure."""
    for name, most in (("world_size", 4), ("seq_len", 6)):
        data = data[data[name].isin(labels.few(data[name], most))]
    return data[data["layout"].isin(labels.layouts_of(data)[:12])]


def left_out(cards: list[Card]) -> str:
    """One line with the figures that have no chart, and why; empty if all have one."""
    reasons: dict[str, list[str]] = {}
    for card in cards:
        if not card.charts:
            reasons.setdefault(card.left_out, []).append(card.title)
    texts = [f"{', '.join(titles)} ({reason})" for reason, titles in reasons.items()]
    return f"figures left out: {'; '.join(texts)}" if texts else ""


def write_figures(cards: list[Card], folder: Path, look: Look = SCREEN) -> Iterator[str]:
    """Write every chart as files, on all cores. Yield a line for each chart and each note."""
    folder.mkdir(parents=True, exist_ok=True)
    with pool("fork") as processes:
        written = {
            id(chart): processes.submit(_rendered, chart, look)
            for card in cards
            for chart in card.charts
        }
        for card in cards:
            for number, chart in enumerate(card.charts, 1):
                label = f" ({chart.of})" if len(card.charts) > 1 else ""
                path = folder / (card.name if number == 1 else f"{card.name}-{number}")
                # This process writes, as it removes its drafts when a signal ends it.
                draw_matplotlib.write(written[id(chart)].result(), path)
                yield f"{card.name}: {path}.{', .'.join(look.formats)}{label}"
            yield from (f"{card.name}: {note}" for note in card.notes)
    yield from filter(None, [left_out(cards)])


def _rendered(chart: Chart, look: Look) -> dict[str, bytes]:
    return draw_matplotlib.rendered(draw_matplotlib.draw(chart, look), look.formats)
