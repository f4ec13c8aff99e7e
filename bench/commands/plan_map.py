"""Draw which method is fastest at every length and number of GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.commands.plan_row import check_speeds
from bench.commands.progress import bar, say
from bench.planner import map_file, method_map
from bench.pool import workers
from bench.report import draw_matplotlib
from bench.report.charts import method_map as map_chart
from methods import METHODS
from odysseus.config.run import RunConfig


def main(
    base: RunConfig,
    methods: Sequence[str],
    path: Path,
    seq_lens: list[int],
    world_sizes: list[int],
) -> int:
    """Write the map's CSV, PNG and SVG; return 0.

    Args:
        methods: The methods that are tried.
        path: Name of the files, without ending.
        seq_lens: Tokens per sample.
        world_sizes: Numbers of GPUs.

    Raises:
        ValueError: the profile has no speeds, the run has a second axis, or the files cannot be
            written.
    """
    check_speeds(base)
    if base.tensor_parallel_size > 1:
        raise ValueError(
            f"tensor_parallel_size = {base.tensor_parallel_size} is not for a map, whose layouts "
            "have one axis and a ring; valid: 1"
        )
    if not path.name:
        raise ValueError(f"map = {path}: it names no file; valid: a new name, without ending")
    csv = path.with_name(f"{path.name}.csv")
    map_file.check_writable(csv)
    runs = method_map.wanted(base, seq_lens, world_sizes, methods)
    cells = method_map.Cells(runs, csv, methods)
    with workers() as processes, bar(len(cells.tasks), "layout") as shown:

        def report(run: RunConfig, line: str) -> None:
            say(f"{run.seq_len} tokens on {run.world_size} GPUs: {line}")
            shown.update()

        data = cells.predict(report, processes)
    title = f"{base.model.label}, {base.dtype}, dry run, {base.hardware}"
    lines = map_chart.fewest_of(base, data) if {*methods} == {*METHODS} else {}
    drawn = map_chart.chart(data, title, lines)
    draw_matplotlib.save(draw_matplotlib.draw(drawn), path)
    print(f"{csv}, .png and .svg: {len(data)} cells")
    return 0
