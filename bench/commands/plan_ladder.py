"""Print the longest sequence of each method, with memory savings added one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench import pool, rows
from bench.commands.plan_row import checked_runs, planned_row
from bench.commands.progress import Search, bar, say
from bench.planner import ladder
from bench.planner.dry_runs import DryRuns
from bench.report import draw_matplotlib, inputs
from bench.report.charts import ladder as ladder_chart
from bench.simulator import fit
from methods import label_of
from odysseus.config.run import RunConfig

_STEPS = 60
"""Dry runs that the ladder of one method takes as a rule."""
_LINE = "{:10} {:>11} {:>8}  {:6} {}"


def main(base: RunConfig, methods: Sequence[str], out: str) -> int:
    """Print a line for every rung of every method as soon as it is known; return 0 if a sequence
    fits, else 1.

    Args:
        methods: The methods that are planned.
        out: CSV file for the rows, beside which their figure is saved; empty writes none.

    Raises:
        ValueError: no method can run the layout, or the files cannot be written.
    """
    if out:
        rows.check_writable(Path(out))
        draw_matplotlib.check_beside(Path(out))
    runs, refused = checked_runs(base, methods)
    print(f"{base.model.label} on {base.world_size} x {base.hardware}, dry runs")
    print(_LINE.format("method", "longest", "gain", "limit", "toggles so far"), flush=True)
    with pool.workers() as processes, bar(_STEPS * len(runs), "dry run") as shown:
        climb = partial(_climb, dry_runs=DryRuns(processes), shown=shown, out=out)
        with pool.waiting(processes, len(runs)) as threads:
            longest = [*threads.map(climb, runs)]
    for name, reason in refused.items():
        print(f"{name}: invalid: {reason}")
    if out and any(longest):
        save_figure(Path(out))
    return 0 if any(longest) else 1


def _climb(run: RunConfig, dry_runs: DryRuns, shown: Any, out: str) -> int:
    """Print the rungs of one method; return its longest sequence in tokens."""
    search, started, longest = Search(shown, _STEPS), time.monotonic(), 0
    for rung in ladder.rungs(run, _reporter(run, search), dry_runs):
        with shown.external_write_mode():
            print(_line(rung), flush=True)
        if rung.longest.whole is not None:
            limit, columns = rung.longest.limit, rung.longest.whole.columns
            planned_row(rung.run, columns, started, out, limit, rung.added)
        started, longest = time.monotonic(), rung.longest.seq_len
    search.end()
    return longest


def _line(rung: ladder.Rung) -> str:
    gain = "" if rung.gain is None else f"{rung.gain:+.1%}"
    toggles = ", ".join(rung.so_far) or ladder.NONE
    name, reached = label_of(rung.run.method), rung.longest
    return _LINE.format(name, reached.seq_len, gain, reached.limit, toggles)


def _reporter(run: RunConfig, search: Search) -> Callable[[int, fit.Need], None]:
    """Return a function that prints each length that the search tries."""

    def report(length: int, need: fit.Need) -> None:
        search.step()
        say(f"{label_of(run.method)}: {length} tokens take {need.share:.1%}")

    return report


def save_figure(out: Path) -> None:
    """Save the figure of the file's rungs beside it, as PNG and SVG."""
    data = inputs.drawable(inputs.read([out]))
    chart = ladder_chart.chart(data)
    if not isinstance(chart, str):
        draw_matplotlib.save(draw_matplotlib.draw(chart), out.with_suffix(""))
        print(f"{out}, {out.with_suffix('.png')} and .svg")
