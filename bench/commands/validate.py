"""``python -m bench validate``: predict published step times, and say how far off that is."""

from __future__ import annotations

from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from bench import pool, provenance, rows
from bench.commands import flags
from bench.config import grid, options
from bench.hardware import overrides
from bench.report import draw_matplotlib
from bench.report.charts import published as published_chart
from bench.validation import errors, prediction, published
from bench.validation.published import Published
from odysseus.config.run import RunConfig

_KEY = ("settings", "replicas", "zero", "speeds")
COLUMNS = (
    *("source", "where", "code", "gpu", "gpus", "seq_len", "tokens_per_gpu", *_KEY),
    *("published_s", "predicted_s", "error"),
    *("mode", "torch_version", "git_commit", "git_dirty", "utc"),
)
"""Columns of the CSV of predictions; ``speeds`` changes with what a prediction rests on."""
_WORST = 10


def main(parsed: Any) -> int:
    """Predict every row that has no prediction yet, print the errors and draw them; return 0.

    Raises:
        ValueError: a row is not valid, or there are none.
    """
    out = Path(parsed.out)
    rows.check_writable(out, COLUMNS, COLUMNS)
    given = [row for row in published.read(Path(parsed.rows), _run) if parsed.only in row.source]
    if not given:
        raise ValueError(f"only = {parsed.only!r} is in no source of {parsed.rows}")
    known = _known(out)
    missing = [row for row in given if _key(row) not in known]
    print(f"{len(given)} rows: {len(given) - len(missing)} had predictions", flush=True)
    work = [list(group) for _, group in groupby(sorted(missing, key=_order), key=_order)]
    done = 0
    with pool.workers() as executor:
        for number, predicted in pool.as_done(executor, prediction.steps_s, work):
            origin = {"mode": "dry_run"} | provenance.columns()
            for row, seconds in zip(work[number], predicted, strict=True):
                rows.append(out, _facts(row, seconds) | origin, COLUMNS)
            done += len(predicted)
            print(f"{done} of {len(missing)}: {work[number][0].source}", flush=True)
    known = _known(out)
    table = pd.DataFrame([_facts(row, known[_key(row)]) for row in given])
    _save_figure(out)
    print(f"\n{errors.summary(table).to_string(index=False)}\n\nfarthest off:")
    worst = table.reindex(table["error"].abs().sort_values(ascending=False).index)[:_WORST]
    for row in worst.to_dict("records"):
        print(f"{row['error']:+.0%}  {row['source']}, {row['gpus']} GPUs: {row['settings']}")
    return 0


def _save_figure(out: Path) -> None:
    """Draw the last prediction of each row; save the figure beside the file as PNG and SVG."""
    table = pd.read_csv(out).drop_duplicates(["source", "where", *_KEY[:-1]], keep="last")
    if not isinstance(chart := published_chart.scatter(table), str):
        draw_matplotlib.save(draw_matplotlib.draw(chart), out.with_suffix(""))


_run_parser = cache(flags.run)


def _run(settings: list[str]) -> RunConfig:
    return grid.run_config(options.parse(_run_parser(), settings))


def _order(row: Published) -> str:
    """Rows of one group share their dry runs."""
    return repr(prediction.one_micro_step(row.run))


def _key(row: Published) -> tuple[str, ...]:
    return row.settings, str(row.replicas), str(row.zero), prediction.digest(row.run)


def _known(out: Path) -> dict[tuple[str, ...], float]:
    """Return the predicted seconds of the rows of a file, by their keys."""
    table = rows.read(out, COLUMNS) if out.exists() else pd.DataFrame(columns=list(COLUMNS))
    records = table.to_dict("records")
    return {tuple(row[name] for name in _KEY): float(row["predicted_s"]) for row in records}


def _facts(row: Published, seconds: float) -> dict[str, Any]:
    """Return what is known of a row and its prediction, by column."""
    return {
        **{name: getattr(row, name) for name in ("source", "where", "code", "gpus")},
        **dict(zip(_KEY, _key(row), strict=True)),
        "gpu": overrides.split(row.run.hardware)[0],
        "seq_len": row.run.seq_len,
        "tokens_per_gpu": row.run.tokens_per_step / row.run.world_size,
        "published_s": row.step_s,
        "predicted_s": seconds,
        "error": seconds / row.step_s - 1,
    }
